"""Soft MoE: From Sparse to Soft Mixtures of Experts, on garments.

Paper: arXiv 2308.00951. Command: `nestor prove soft_moe`.

A vision transformer of 49 tokens whose last half of feed-forward layers are soft mixtures of 48 slots, over 8, 16 or 48
experts, against a dense one, as many experts that choose tokens, and tokens that choose one of 8 experts, all at about
the same multiply-accumulates. Time is that of a forward and a backward pass, a median of turns on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.measure.over_seeds import over_seeds
from nestor.measure.step_time import step_times
from nestor.models.composed import Composed, stack, tiny
from nestor.recipes.base import Claim, Proof, claims
from nestor.routing.adjust import Softmax
from nestor.routing.choose import expert_choice, soft, top_k
from nestor.routing.learned import Dot, Slots
from nestor.routing.refine import drop
from nestor.routing.router import ComposedRouter
from nestor.training.balance import Balance
from nestor.training.compare import Rival, compare, garments, means
from nestor.training.settings import FRESH
from nestor.types import Signal, Soft

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nestor.measure.dots import Dots

TITLE = "Soft MoE: From Sparse to Soft Mixtures of Experts"
ARXIV = "2308.00951"
IDEA = "Each slot of an expert takes a mixture of all tokens, each token a mixture of all slots: nothing is dropped."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; slots are those of all experts together."""

    pictures: int = 2500
    held_out: int = 2000
    epochs: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    slots: int = 48
    experts: tuple[int, ...] = (8, 16, 48)

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, layer: Callable[[], Mixture | Dense] | None = None) -> Composed:
    """The network; its last half has soft mixtures of the middle number of experts, or other layers if given."""
    make = layer or partial(softly, settings, settings.experts[len(settings.experts) // 2])
    layers = [make() if 2 * place >= settings.depth else dense(settings) for place in range(settings.depth)]
    return tiny(settings.width, stack(settings.width, 4, layers))


def dense(settings: Settings) -> Mixture | Dense:
    """One network for all tokens."""
    return Dense(FeedForward(settings.width, 4 * settings.width, 1))


def softly(settings: Settings, experts: int) -> Mixture:
    """A soft mixture."""
    C, D = settings.slots // experts, settings.width
    router = ComposedRouter(Slots(D, experts, slots=C), [], partial(soft, slots=C))
    return Mixture(router, FeedForward(D, 4 * D, experts))


def sparsely(settings: Settings, experts: int, *, by_token: bool) -> Mixture:
    """A mixture whose tokens choose one expert, or whose experts choose as many tokens as there are slots."""
    choice = partial(top_k, k=1) if by_token else partial(expert_choice, factor=settings.slots / 49)
    D, drops = settings.width, [partial(drop, factor=1.0)] if by_token else []
    return Mixture(ComposedRouter(Dot(D, experts), [Softmax()], choice, drops), FeedForward(D, 4 * D, experts))


def rivals(settings: Settings) -> dict[str, Rival]:
    """All that are compared, by name."""
    s, some = settings, partial(sparsely, settings)
    layers: dict[str, Any] = {"dense": partial(dense, s), "tokens choose": partial(some, s.experts[0], by_token=True)}
    for n in s.experts:
        layers |= {f"{n} experts choose": partial(some, n, by_token=False), f"soft, {n} experts": partial(softly, s, n)}
    losses = {"tokens choose": (Balance(),)}
    return {name: Rival(build=partial(build, s, each), balance=losses.get(name, ())) for name, each in layers.items()}


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties of the mixture, then accuracies over seeds, and the time that a step takes."""
    shown, details, s, nets = _exact(settings), {}, settings, rivals(settings)
    if s.seeds:
        how = replace(FRESH, epochs=s.epochs)
        time = step_times({n: nets[n].build() for n in nets if "soft" in n}, torch.randn(16, 3, 28, 28))
        details = {"accuracy": compare(nets, *garments(s.pictures, s.held_out), how, s.seeds), "milliseconds": time}
        shown += _found(s, means(details["accuracy"]), list(time.values()))
    return Proof(claims=tuple(shown), details=details)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    layer, tokens, order = softly(settings, settings.experts[0]), torch.randn(2, 49, settings.width), torch.randperm(49)
    answer, (routing,) = layer(tokens)
    assert isinstance(routing, Soft)
    images, nets = torch.randn(2, 3, 28, 28), {name: rival.build() for name, rival in rivals(settings).items()}
    spent = {name: net.macs(net(images), 2, 49) for name, net in nets.items()}
    errors = {
        "what a slot takes adds up to one": routing.give.sum(-1) - 1,
        "what a token takes adds up to one": routing.take.sum((2, 3)) - 1,
        "permuted tokens get permuted answers": layer(tokens[:, order])[0] - answer[:, order],
        "other pictures change nothing": layer(tokens[:1])[0] - answer[:1],
    }
    layer.router.get_parameter("score.phi").zero_()
    even = layer.router(tokens, Signal()).dispatch(tokens).unflatten(0, (settings.experts[0], 2, -1))
    errors["without weights every slot is the mean token"] = even - tokens.mean(1)[None, :, None]
    rows = {f"error: {text}": (float(off.abs().max()), "<=", 1e-5) for text, off in errors.items()}
    rows |= {f"multiply-accumulates over dense, {name}": (spent[name] / spent["dense"], "<=", 1.15) for name in spent}
    return claims(rows, exact=True)


def _found(settings: Settings, score: dict[str, float], times: list[float]) -> list[Claim]:
    soft = {n: score[f"soft, {n} experts"] for n in settings.experts}
    choose = {n: score[f"{n} experts choose"] for n in settings.experts}
    rows = {f"accuracy, {n} experts, soft against experts choose": (soft[n], ">=", choose[n]) for n in soft}
    rows |= {f"accuracy, {n} experts choose against dense": (choose[n], ">=", score["dense"]) for n in soft}
    rows |= {f"accuracy, soft, {b} experts against {a}": (soft[b], ">=", soft[a]) for a, b in pairwise(soft)}
    rows["accuracy, fewest experts, soft against tokens choose"] = (soft[min(soft)], ">=", score["tokens choose"])
    rows["time of a step, slowest number of experts over fastest"] = (max(times) / min(times), "<=", 1.15)
    return claims(rows)


def curves(details: dict[str, Any]) -> Dots | None:
    """Accuracies over seeds."""
    return over_seeds(details["accuracy"], "soft, 48 experts", "Soft MoE") if details else None
