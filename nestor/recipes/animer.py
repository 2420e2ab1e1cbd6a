"""AniMer+: Unified Pose and Shape Estimation Across Mammalia and Aves via Family-Aware Transformer, on two families.

Paper: arXiv 2508.00298. Command: `nestor prove animer`.

Two families of pictures, garments and handwritten digits, and seven numbers of what each shows: its centre, extents,
principal axis and area. In every block three quarters of the feed-forward answer are computed by one network for both
families, and the last quarter by an expert of the family, which is known. A contrastive loss on the class token draws
pictures of one kind together. Against a network that shares all, and two networks. Choices: a linear head of each
family reads the mean patch, in place of two decoders; there are no bodies, keypoints or priors; training starts from
nothing and has one stage; the contrastive loss weighs 0.01, as 5e-4 does beside the published losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.feedforward import FeedForward
from nestor.experts.partly import PartlyShared
from nestor.layers.answers import OfClassToken, OfMean
from nestor.layers.block import Dense
from nestor.measure.cost import parameters
from nestor.measure.neighbours import purity_of_tasks
from nestor.measure.over_seeds import over_seeds
from nestor.models.composed import stack
from nestor.models.tasked import Tasked, grey_patches, partly_by_task
from nestor.recipes.base import Claim, Proof
from nestor.training.beside import Contrast
from nestor.training.compare import means
from nestor.training.set_tasks import alone, shapes
from nestor.training.settings import Fit
from nestor.training.tasks import learn, note, scores
from nestor.types import Signal

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.measure.dots import Dots

TITLE = "AniMer+: Unified Pose and Shape Estimation Across Mammalia and Aves via Family-Aware Transformer"
ARXIV = "2508.00298"
IDEA = "One network for two families: most of every layer is shared, and a slice of its channels is the family's own."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `contrast` is the weight of the contrastive loss."""

    pictures: int = 1350
    held_out: int = 450
    steps: int = 400
    batch: int = 16
    rate: float = 0.03
    contrast: float = 0.01
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, families: int = 2, *, split: bool = True) -> Tasked:
    """The network of so many families; heads come in their order, and last the one of the class token."""
    D, places = settings.width, range(settings.depth)
    split_layer = partial(partly_by_task, D, 4 * D, tasks=2, own=D // 4)
    layers = [split_layer() if split else Dense(FeedForward(D, 4 * D, 1)) for _ in places]
    heads = [OfMean(D, 7, prefix=1) for _ in range(families)]
    return Tasked(grey_patches(D, 28, 4, prefix=1), stack(D, 4, layers), [*heads, OfClassToken(D, 4 * D, D)])


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then over seeds how much of the variance both families' answers explain."""
    claims, details = _exact(settings), {}
    if settings.seeds:
        details = _runs(settings)
        claims += _claims(details)
    return Proof(claims=tuple(claims), details=details)


def _runs(settings: Settings) -> dict[str, Any]:
    s, found = settings, {"score": {}, "purity": {}}
    tasks, test, kinds, judged = shapes(s.pictures, s.held_out)

    for seed in s.seeds:
        how, two = Fit(steps=s.steps, batch=s.batch, rate=s.rate, seed=seed), {}
        contrast = Contrast(head=2, kinds=dict(enumerate(kinds)), weight=s.contrast)
        for name, beside in (("split", contrast), ("shared", contrast), ("split, no contrast", None)):
            torch.manual_seed(seed)
            model = learn(build(s, split=name != "shared"), tasks, how, beside=beside)
            note(found["score"], name, scores(model, test))
            pure = purity_of_tasks(model, [task.images for task in test], judged)
            found["purity"].setdefault(name, []).append(pure)
            if name == "split":
                note(found["score"], "the other's experts", scores(model, test, told=lambda task: 1 - task.head))
        for task, judge, labels in zip(tasks, test, kinds, strict=True):
            torch.manual_seed(seed)
            single = Contrast(head=1, kinds={0: labels}, weight=s.contrast)
            two |= scores(learn(build(s, 1, split=False), [alone(task)], how, beside=single), [alone(judge)])
        note(found["score"], "two networks", two)
    return found


def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    D, tokens, signal = settings.width, torch.randn(4, 9, settings.width), Signal(task=torch.tensor([0, 1, 1, 0]))
    one = FeedForward(D, 4 * D, 1)
    layer = partly_by_task(D, 4 * D, tasks=2, own=D // 4)
    layer.experts = PartlyShared.of(one, 2, own=D // 4)
    error = float((layer(tokens, signal)[0] - Dense(one)(tokens)[0]).detach().abs().max())
    model = build(settings)
    own = [layer.experts.get_parameter("own") for layer in model.feedforwards]
    slopes = torch.autograd.grad(model(torch.randn(4, 1, 28, 28), 0).logits.square().mean(), own)
    idle, busy = (max(float(slope[family].abs().max()) for slope in slopes) for family in (1, 0))
    size, two = parameters(model), 2 * parameters(build(settings, 1, split=False))
    rows = {
        "error against the dense layer, equal experts": (error, "<=", 1e-6),
        "gradient of the experts of a family that is not there": (idle, "==", 0),
        "gradient of those of the family that is there": (busy, ">", 0),
        "parameters over those of two networks": (size / two, "<=", 0.65),
    }
    return [Claim(text=t, left=a, relation=sign, right=b, exact=True) for t, (a, sign, b) in rows.items()]


def _claims(found: dict[str, Any]) -> list[Claim]:
    error = {name: 1 - mean(means(families).values()) for name, families in found["score"].items()}
    pure = means(found["purity"])
    rows = {
        "error, split against shared": (error["split"], "<=", error["shared"]),
        "error, the other family's experts": (error["the other's experts"], ">", error["split"]),
        "purity of neighbours, with and without contrast": (pure["split"], ">", pure["split, no contrast"]),
    }
    return [Claim(text=t, left=a, relation=sign, right=b) for t, (a, sign, b) in rows.items()]


def curves(details: dict[str, Any]) -> tuple[Dots, ...] | None:
    """Scores of each family, over seeds."""
    if not details:
        return None
    ways = details["score"]
    rows = {family: {way: ways[way][family] for way in ways} for family in ("garments", "digits")}
    return tuple(over_seeds(row, "split", f"shape of {family}", "variance explained") for family, row in rows.items())
