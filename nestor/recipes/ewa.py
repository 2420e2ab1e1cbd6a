"""EWA: Experts Weights Averaging, on garments and handwritten digits.

Paper: arXiv 2308.06093. Command: `nestor prove ewa`.

Every second feed-forward layer is trained as four copies that get random parts of the tokens and are drawn together
after each step; their mean remains. Against a dense network, the mean of its weights over time, and copies averaged at
the end only. Choices where the paper leaves them open: four experts, every second block, a rate that grows linearly to
one half, a mean over time that looks back a hundred steps.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.feedforward import FeedForward
from nestor.experts.stacked import average, pull
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.measure.over_seeds import over_seeds
from nestor.measure.points import apart
from nestor.models.composed import Composed, stack, tiny
from nestor.recipes.base import Claim, Proof, claims
from nestor.routing.fixed import Shuffled
from nestor.surgery.grow import upcycle
from nestor.training.compare import Rival, compare, garments, means
from nestor.training.over_time import OverTime, over_time
from nestor.training.settings import Fit
from nestor.training.written import written

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.measure.dots import Dots

TITLE = "EWA: Experts Weights Averaging: A New General Training Scheme for Vision Transformers"
ARXIV = "2308.06093"
IDEA = "Train copies of a layer on random parts of the tokens, draw them together after each step, and keep their mean."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `most` is the rate at which copies are drawn together in the end."""

    pictures: int = 3000
    held_out: int = 2000
    epochs: int = 4
    batch: int = 16
    rate: float = 0.03
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    experts: int = 4
    most: float = 0.5

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, *, drawn: bool = True) -> Composed:
    """The network in training: every second layer as copies, drawn together at a rate that grows to `most`, or not."""

    def draw(model: torch.nn.Module, progress: float) -> None:
        for layer in model.mixtures if isinstance(model, Composed) else ():
            pull(layer.experts, settings.most * progress)

    model = dense(settings)
    for block in model.chain[1::2]:
        one = block.layer.experts
        assert isinstance(one, FeedForward)
        block.layer = Mixture(Shuffled(settings.experts), upcycle(one, settings.experts))
    model.after = draw if drawn else None
    return model


def dense(settings: Settings) -> Composed:
    """The plain network, which remembers the mean of its weights over its training."""
    layers = [Dense(FeedForward(settings.width, 4 * settings.width, 1)) for _ in range(settings.depth)]
    model = tiny(settings.width, stack(settings.width, 4, layers))
    model.after = OverTime()
    return model


def averaged(model: Composed) -> Composed:
    """What remains: a plain network whose layers are the means of the copies."""
    new = copy.deepcopy(model)
    for block in new.chain:
        if isinstance(block.layer, Mixture):
            block.layer = Dense(average(block.layer.experts))
    return new


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies before and after averaging, of garments and of digits."""
    shown, details, s = _exact(settings), dict[str, Any](), settings
    if s.seeds:
        rivals = {
            "dense": Rival(build=partial(dense, s), convert={"dense, mean over time": over_time}),
            "copies": Rival(build=partial(build, s, drawn=False), convert={"copies, averaged": averaged}),
            "EWA": Rival(build=partial(build, s), convert={"EWA, averaged": averaged}),
        }
        for name, data in (("garments", garments(s.pictures, s.held_out)), ("digits", written())):
            details[name] = compare(rivals, *data, Fit(epochs=s.epochs, rate=s.rate, batch=s.batch), s.seeds)
            shown += _accuracy(name, means(details[name]))
    return Proof(claims=tuple(shown), details=details)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    images, model = torch.randn(2, 3, 28, 28), build(settings)
    torch.nn.init.normal_(model.head.weight)
    same = apart(model(images).logits, averaged(model)(images).logits)
    N, rate, experts = settings.experts, settings.most / 2, FeedForward(settings.width, 8, settings.experts)
    before = [parameter.clone() for parameter in experts.parameters() if parameter.any()]
    pull(experts, rate)
    after = [parameter.clone() for parameter in experts.parameters() if parameter.any()]
    kept = max(apart(a.sum(0), b.sum(0)) for a, b in zip(after, before, strict=True))
    shrunk = mean(float((a - a.mean(0)).norm() / (b - b.mean(0)).norm()) for a, b in zip(after, before, strict=True))
    pull(experts, (N - 1) / N)
    errors = {
        "relative error: equal copies are the dense network": same,
        "relative error: drawing together keeps the sum of the copies": kept,
        "error: copies come nearer by 1 - b N / (N - 1)": abs(shrunk - (1 - rate * N / (N - 1))),
        "error: at b = (N - 1) / N copies coincide": max(float((p - p[:1]).abs().max()) for p in experts.parameters()),
    }
    return claims({text: (left, "<=", 1e-5) for text, left in errors.items()}, exact=True)


def _accuracy(name: str, score: dict[str, float]) -> list[Claim]:
    ours, lost = score["EWA, averaged"], {n: score[n] - score[f"{n}, averaged"] for n in ("EWA", "copies")}
    rows = {
        "accuracy, EWA against dense": (ours, ">=", score["dense"]),
        "accuracy, EWA against the mean over time": (ours, ">=", score["dense, mean over time"]),
        "accuracy lost by averaging, EWA": (lost["EWA"], "<", 0.003),
        "accuracy lost by averaging, copies against EWA": (lost["copies"], ">", lost["EWA"]),
    }
    return claims({f"{name}: {text}": row for text, row in rows.items()})


def curves(details: dict[str, Any]) -> tuple[Dots, ...] | None:
    """Accuracies over seeds, of either set."""
    return tuple(over_seeds(rows, "EWA, averaged", name) for name, rows in details.items()) or None
