"""ViMoE: An Empirical Study of Designing Vision Mixture-of-Experts, on a pretrained network and garments.

Paper: arXiv 2410.15732. Command: `nestor prove vimoe`.

The last layers of DINOv2 ViT-S/14 become mixtures with one expert for a whole picture, beside an expert for all or not.
What each layer's choice tells of the class says which mixtures are worth keeping; the others become one network again.
Choices: four experts, the mean token asks, routed experts beside a shared one count from zero, the first eight blocks
stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.gated import Scaled
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.measure.met import most_met
from nestor.measure.traffic import by_class, normalised_information
from nestor.models.composed_plain import composed
from nestor.models.pretrained import read
from nestor.recipes.base import Claim, Proof
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.given import Pooled
from nestor.routing.learned import Dot
from nestor.routing.refine import hard
from nestor.routing.router import ComposedRouter
from nestor.surgery.grow import upcycle
from nestor.surgery.shrink import undo
from nestor.training.balance import Balance
from nestor.training.compare import Rival, right, train
from nestor.training.contest import garments_at
from nestor.training.settings import Fit
from nestor.types import Sparse

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.data import Pictures
    from nestor.experts.feedforward import FeedForward
    from nestor.models.composed import Composed

TITLE = "ViMoE: An Empirical Study of Designing Vision Mixture-of-Experts"
ARXIV = "2410.15732"
IDEA = (
    "An expert for all makes mixtures safe in any layer; what a layer's choice tells of the class says which to keep."
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `depths` are the numbers of last layers that become mixtures."""

    size: int = 56
    pictures: int = 1000
    held_out: int = 1000
    epochs: int = 2
    rate: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    experts: int = 4
    depths: tuple[int, ...] = (1, 2, 4)
    frozen: int = 8

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, classes: tuple[str, ...], *, last: int = 4, shared: bool = True) -> Composed:
    """The pretrained network with mixtures in its last layers."""

    def layer(depth: int, one: FeedForward) -> Mixture | Dense:
        if depth < 12 - last:
            return Dense(one)
        refinements = [] if shared else [hard]
        score = Pooled(Dot(one.inward.shape[-1], settings.experts))
        router = ComposedRouter(score, [Softmax()], partial(top_k, k=1), refinements)
        copies = upcycle(one, settings.experts)
        return Mixture(router, Scaled(copies), one) if shared else Mixture(router, copies)

    return composed(read("dinov2-small"), classes, layer, frozen=settings.frozen)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies over depths and what removing mixtures costs."""
    claims, details = _exact(settings), {}
    if settings.seeds:
        learn, test = garments_at(settings.size, settings.pictures, settings.held_out)
        details = _runs(settings, learn, test)
        claims += _claims(details)
    return Proof(claims=tuple(claims), details=details)


def _runs(settings: Settings, learn: Pictures, test: Pictures) -> dict[str, Any]:
    how = Fit(epochs=settings.epochs, rate=settings.rate, batch=32, head_rate=30.0)
    images = test.stacked(500)
    labels = torch.tensor(test.labels[: len(images)])
    found: dict[str, Any] = {"accuracy": {"shared": [], "alone": []}, "information": [], "removed": []}
    for seed in settings.seeds:
        for kind, shared in (("shared", True), ("alone", False)):
            row = []
            for last in settings.depths:
                make = partial(build, settings, learn.classes, last=last, shared=shared)
                model = train(Rival(build=make, balance=(Balance(),)), learn, how, seed)
                row.append(right(model, test))
                if shared and last == max(settings.depths):
                    with torch.no_grad():
                        routings = model(images).routings
                    tables = [by_class(routing, labels, len(learn.classes)) for routing in routings]
                    found["information"].append([normalised_information(table) for table in tables])
                    less = [
                        undo(model, i, routing) for i, routing in enumerate(routings) if isinstance(routing, Sparse)
                    ]
                    found["removed"].append([right(each, test) for each in less])
            found["accuracy"][kind].append(row)
    return found


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    images, plain = torch.randn(2, 3, 56, 56), composed(read("dinov2-small"), ("a", "b"))
    expected, claims = plain(images).tokens, []
    for kind, shared in (("with", True), ("without", False)):
        output = build(settings, ("a", "b"), shared=shared)(images)
        error = float((output.tokens - expected).norm() / expected.norm())
        text = f"relative error at the start, {kind} an expert for all"
        claims.append(Claim(text=text, left=error, relation="<=", right=2e-5, exact=True))
    one = most_met(output.routings)
    return [*claims, Claim(text="experts of a picture in a layer", left=one, relation="==", right=1, exact=True)]


def _claims(found: dict[str, Any]) -> list[Claim]:
    spread = {kind: mean(max(row) - min(row) for row in rows) for kind, rows in found["accuracy"].items()}
    told = [mean(row[i] for row in found["information"]) for i in (0, -1)]
    pairs = list(zip(found["information"], found["removed"], strict=True))
    left = [mean(gone[known.index(pick(known))] for known, gone in pairs) for pick in (min, max)]
    rows = {
        "spread of accuracies over depths, alone against shared": (spread["alone"], spread["shared"]),
        "information on the class, last against first mixture": (told[1], told[0]),
        "accuracy without the least against without the most informed": (left[0], left[1]),
    }
    return [Claim(text=text, left=a, relation=">=", right=b) for text, (a, b) in rows.items()]
