"""ViMoE: An Empirical Study of Designing Vision Mixture-of-Experts, on a pretrained network and garments.

Paper: arXiv 2410.15732. Command: `nestor prove vimoe`.

The last layers of DINOv2 ViT-S/14 become mixtures with one expert for a whole picture, beside an expert for all or not.
What each layer's choice tells of the class says which mixtures are worth keeping. In the others the expert for all
stays alone, and the network is briefly trained on, as is the whole one. Choices: four experts, the mean token asks,
routed experts beside a shared one count from zero, the first eight blocks stay as they are; to tell what a mixture is
worth, its mean expert is laid beside the shared one, without training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.gated import Scaled
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.measure.informed import ends, informed, least, rise, spread
from nestor.measure.met import most_met
from nestor.measure.over_seeds import over_seeds
from nestor.measure.points import apart
from nestor.models.composed import Composed
from nestor.models.composed_plain import composed
from nestor.models.pretrained import read
from nestor.recipes.base import Claim, Proof, claims
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.given import Pooled
from nestor.routing.learned import Dot
from nestor.routing.refine import hard
from nestor.routing.router import ComposedRouter
from nestor.surgery.always import without_routed
from nestor.surgery.grow import upcycle
from nestor.surgery.shrink import undo
from nestor.training.balance import Balance
from nestor.training.compare import Rival, means, right, train
from nestor.training.contest import garments_at, note, seen
from nestor.training.settings import Fit
from nestor.types import Sparse

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.experts.feedforward import FeedForward
    from nestor.measure.dots import Dots

TITLE = "ViMoE: An Empirical Study of Designing Vision Mixture-of-Experts"
ARXIV = "2410.15732"
IDEA = "An expert for all makes mixtures safe in any layer; a layer's choice tells of the class whether to keep it."
WHOLE, PRUNED, EVEN = "shared, trained on", "shared, pruned and trained on", (Balance(),)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `depths` are the numbers of last layers that become mixtures, of which `kept` stay."""

    size: int = 56
    pictures: int = 500
    held_out: int = 400
    epochs: int = 2
    rate: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    experts: int = 4
    depths: tuple[int, ...] = (1, 2, 4)
    kept: int = 2
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
        score = Pooled(Dot(one.inward.shape[-1], settings.experts))
        router = ComposedRouter(score, [Softmax()], partial(top_k, k=1), [] if shared else [hard])
        copies = upcycle(one, settings.experts)
        return Mixture(router, Scaled(copies), one) if shared else Mixture(router, copies)

    return composed(read("dinov2-small"), classes, layer, frozen=settings.frozen)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies over depths and what removing mixtures costs."""
    details = _runs(settings) if settings.seeds else {}
    shown = _claims(settings, details) if details else []
    return Proof(claims=(*_exact(settings), *shown), details=details)


def _runs(settings: Settings) -> dict[str, Any]:
    s, found = settings, dict[str, Any](information=[], removed=[])
    learn, test = garments_at(s.size, s.pictures, s.held_out)
    how, brief = (Fit(epochs=n, rate=s.rate, batch=32, head_rate=rate) for n, rate in ((s.epochs, 30.0), (1, 1.0)))
    for seed, last, kind in product(s.seeds, s.depths, ("shared", "alone")):
        make = partial(build, s, learn.classes, last=last, shared=kind == "shared")
        model = train(Rival(build=make, balance=EVEN), learn, how, seed)
        note(found, f"{kind}, last {last}", model, test, {})
        if kind == "shared" and last == max(s.depths):
            routings = seen(model, test)[0].routings
            found["information"].append(known := informed(routings, test))
            gone = [undo(model, i, each) for i, each in enumerate(routings) if isinstance(each, Sparse)]
            found["removed"].append([right(each, test) for each in gone])
            for name, numbers in ((WHOLE, []), (PRUNED, least(known, last - s.kept))):
                rival = Rival(build=partial(without_routed, model, numbers), balance=EVEN)
                note(found, name, train(rival, learn, brief, seed), test, {"macs": Composed.macs})
    return found


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    images, plain = torch.randn(2, 3, 56, 56), composed(read("dinov2-small"), ("a", "b"))
    expected, rows = plain(images).tokens, dict[str, tuple[float, str, float]]()
    for kind, shared in (("with", True), ("without", False)):
        output = build(settings, ("a", "b"), shared=shared)(images)
        rows[f"relative error at the start, {kind} an expert for all"] = (apart(output.tokens, expected), "<=", 2e-5)
    rows["experts of a picture in a layer"] = (most_met(output.routings), "==", 1)
    return claims(rows, exact=True)


def _claims(settings: Settings, found: dict[str, Any]) -> list[Claim]:
    apart = {k: spread([found["accuracy"][f"{k}, last {n}"] for n in settings.depths]) for k in ("alone", "shared")}
    score, macs = means(found["accuracy"]), means(found["macs"])
    low, high = ends(found["information"], found["removed"])
    rows = {
        "spread of accuracies over depths, alone against shared": (apart["alone"], ">", apart["shared"]),
        "information on the class, least rise from a mixture to the next": (rise(found["information"]), ">", 0),
        "accuracy without the least against without the most informed": (low, ">", high),
        "accuracy, pruned against whole": (score[PRUNED], ">=", score[WHOLE]),
        "multiply-accumulates, pruned against whole": (macs[PRUNED], "<", macs[WHOLE]),
    }
    return claims(rows)


def curves(details: dict[str, Any]) -> tuple[Dots, ...] | None:
    """Accuracies over seeds, and what each mixture tells of the class."""
    told = {f"mixture {i}": each for i, each in enumerate(zip(*details.get("information", ()), strict=True), 1)}
    what = (("accuracy", PRUNED, details.get("accuracy")), ("information", "mixture 1", told))
    return tuple(over_seeds(rows, first, title, title) for title, first, rows in what if rows) or None
