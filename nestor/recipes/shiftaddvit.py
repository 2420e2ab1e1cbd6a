"""ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer, on garments.

Paper: arXiv 2306.06446. Command: `nestor prove shiftaddvit`.

A trained transformer loses its multiplications in three stages, each tuned: linear attention, binary queries and keys,
and two experts in place of each feed-forward part, one that multiplies and one that shifts, both its copies, balanced
by what a token costs with either. Against the dense network trained as long, and shifts alone. Energy is counted, not
measured, with published numbers of a 45 nm process. Choices: projections keep multiplying, the chosen expert is
weighted by its probability, activations are not rounded to 16.16 outside the exact comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.feedforward import FeedForward
from nestor.experts.rounded import LEAST, shift
from nestor.layers.angular import AngularAttention, binary, unit
from nestor.layers.block import Dense, SelfAttention
from nestor.measure.energy import energy, multiplied, operations
from nestor.measure.points import apart, over_cost
from nestor.models.composed import Composed, stack, tiny
from nestor.ops.shifts import fixed, shift_add
from nestor.recipes.base import Claim, Proof
from nestor.routing import losses
from nestor.surgery.exchange import with_attention, with_layers
from nestor.surgery.shifts import primitives, rounded
from nestor.training.aims import Priced, pursue
from nestor.training.compare import means
from nestor.training.contest import garments_at, note, shares
from nestor.training.settings import FRESH

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer"
ARXIV = "2306.06446"
IDEA = "Attention becomes additions; tokens that matter are multiplied, the others shifted, as their latencies allow."
NOISE = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `latencies` are pairs for multiplying and shifting, `stage` the epochs of each tuning."""

    pictures: int = 3000
    held_out: int = 2000
    epochs: int = 4
    stage: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    latencies: tuple[tuple[float, float], ...] = ((0.6, 0.4), (0.75, 0.25))

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, *, dense: bool = False) -> Composed:
    """The last stage, or the dense network that all stages start from."""
    D = settings.width
    plain = tiny(D, stack(D, 4, [Dense(FeedForward(D, 4 * D, 1)) for _ in range(settings.depth)]))
    return plain if dense else both(with_attention(plain, partial(AngularAttention.of, code=binary)))


both = partial(with_layers, build=partial(primitives, noise=NOISE))


def aim(latencies: tuple[float, float]) -> Priced:
    """Balance of time, not of tokens: both experts shall take equally long."""
    parts = partial(losses.importance, costs=latencies), partial(losses.load, deviation=NOISE, costs=latencies)
    return Priced(losses=tuple((0.01, part) for part in parts))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then the stages over seeds: accuracy, energy, and how many tokens are multiplied."""
    claims, found, s = _exact(settings), dict[str, Any](), settings
    if s.seeds:
        learn, test = garments_at(28, s.pictures, s.held_out)
        how = replace(FRESH, epochs=s.epochs, router_rate=1.0)
        tune = replace(how, epochs=s.stage, rate=how.rate / 3)
        for seed in s.seeds:
            torch.manual_seed(seed)
            first = pursue(build(s, dense=True), learn, how, Priced(), seed)
            on = partial(pursue, pictures=learn, how=tune, seed=seed)
            models = {"dense": on(first, how=replace(tune, epochs=3 * s.stage), aim=Priced())}
            linear = on(with_attention(first, partial(AngularAttention.of, code=unit)), aim=Priced())
            coarse = on(with_attention(linear, partial(AngularAttention.of, code=binary)), aim=Priced())
            shifts = with_layers(coarse, lambda layer: Dense(rounded(layer.experts)))
            models |= {"linear": linear, "binary": coarse, "shifts": on(shifts, aim=Priced())}
            for pair in s.latencies:
                models[f"both, {pair[0]}"] = on(both(coarse), aim=aim(pair))
            for name, model in models.items():
                reads = {"energy": lambda *parts: energy(operations(*parts)), "multiplied": multiplied}
                note(found, name, model, test, reads)
        found["cost"] = shares(found["energy"])
        claims += _claims(s, found)
    return Proof(claims=tuple(claims), details=found)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    D, one, tokens = (
        settings.width,
        FeedForward(settings.width, 4 * settings.width, 1),
        torch.randn(2, 49, settings.width),
    )
    rows, weight = fixed(tokens[0]), shift(one.inward[0])
    ours = (rows.double() @ weight.double().T) * 2.0**-LEAST
    attention = AngularAttention.of(SelfAttention(D, 4), binary)
    query, key, value = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in attention.inward(tokens).chunk(3, -1))
    code = binary(query) @ binary(key).mT
    quadratic = unit(value / 2 + code @ value / torch.pi).transpose(1, 2).flatten(2)
    copies = primitives(Dense(one), NOISE).experts(tokens.flatten(0, 1), torch.tensor([98, 0]))
    rows = {
        "error of shifting against whole numbers": float((ours - shift_add(rows, weight, LEAST)).abs().max()),
        "relative error of linear against quadratic attention": apart(attention(tokens), attention.outward(quadratic)),
        "error of the expert that multiplies, at the start": apart(copies, Dense(one)(tokens)[0].flatten(0, 1)),
        "distance of codes from 0 or 1": float((code - code.round()).abs().max()),
    }
    return [Claim(text=text, left=left, relation="<=", right=1e-5, exact=True) for text, left in rows.items()]


def _claims(settings: Settings, found: dict[str, Any]) -> list[Claim]:
    score, cost, first = means(found["accuracy"]), found["cost"], f"both, {settings.latencies[0][0]}"
    rows = {
        "accuracy, both experts against shifts alone": (score[first], ">", score["shifts"]),
        "accuracy, both experts against dense less one point": (score[first], ">=", score["dense"] - 0.01),
        "energy of both experts over dense": (cost[first], "<=", 0.571),
    }
    for multiply, shifting in settings.latencies:
        off = abs(means(found["multiplied"])[f"both, {multiply}"] - shifting / (multiply + shifting))
        rows[f"share of multiplied tokens at {multiply} to {shifting}, off by"] = (off, "<=", 0.1)
    return [Claim(text=t, left=a, relation=sign, right=b) for t, (a, sign, b) in rows.items()]


def curves(details: dict[str, Any]) -> Any:
    """Accuracies over energies."""
    return over_cost(details, what="energy")
