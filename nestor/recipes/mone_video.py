"""MoNE on moving pictures: the spatial encoder of a factorised video transformer, with nested experts.

Paper: arXiv 2407.19985. Command: `nestor prove mone_video`.

Garments move, grow or turn; the classes are garment and motion together, and no single frame tells the motion. A small
transformer sees tubelets of two frames, index by index, and gives a class token of each to a temporal one; its patches
take one of four widths, in every index as many of each as the budget says. Beside it, from the same random weights:
- random router: the same with patches drawn by lot, in training too;
- dense of equal MACs: an ordinary network for each budget, narrower where it must be;
- dedicated: the nested network trained for one budget alone, as the paper trains it;
- one frame: the dense network on clips that stand still, in training too.

Each training costs equal multiply-accumulates: a cheap network sees more clips. Rates were chosen on training clips.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from nestor.data import MOTIONS, load_clips
from nestor.data.drawn import Drawn, drawn
from nestor.measure.repeats import Repeats
from nestor.measure.routed import miscounted, swayed
from nestor.measure.score import accuracy
from nestor.models.scratch_video import cheaper_video, scratch_video, with_space
from nestor.models.uniform import randomly_routed
from nestor.recipes.base import Claim, Proof
from nestor.surgery.nest import nest, published
from nestor.training.fit import fit
from nestor.training.parallel import side_by_side
from nestor.training.predict import predict
from nestor.training.schedule import Chosen, Fixed
from nestor.training.settings import Fit
from nestor.training.within import within

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.models.video import VideoViT

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "On clips, the patches of each frame are routed by themselves: less than half the cost at dense accuracy."

NESTED, RANDOM, DENSE, DEDICATED, STILL = "nested", "random router", "dense of equal MACs", "dedicated", "one frame"
# The paper's network is 2.3 times as cheap as the dense one where it is as accurate.
CHEAP = 0.434
PATCHES = 16
SHAPE = {"side": 24, "patch": 6, "heads": 4, "frames": 8, "tubelet": 2, "temporal": 1}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run.

    Attributes:
        width, depth: of the spatial encoder; one block looks back in time.
        clips, test: how many of the two parts.
        compute: of each training, in epochs of the dense network.
        budgets: at which networks are compared, 0.434 among them.
    """

    width: int = 64
    depth: int = 3
    clips: int = 18_000
    test: int = 4_000
    compute: float = 1.0
    batch: int = 25
    rate: float = 0.01
    seeds: tuple[int, ...] = (0, 1, 2)
    budgets: tuple[float, ...] = (0.35, CHEAP, 0.65)

    @classmethod
    def quick(cls) -> Settings:
        """A few steps of small networks: the exact claims, and that all of them can be trained."""
        return cls(width=32, depth=2, clips=48, test=24, compute=1, batch=12, seeds=(0,), budgets=(CHEAP,))


@dataclass(frozen=True, kw_only=True)
class Item:
    """One training: a line's network for one budget or, where that is None, for all of them."""

    seed: int
    line: str
    budget: float | None = None


def items(settings: Settings) -> list[Item]:
    """All trainings; none needs another."""
    lines = [(NESTED, None), (RANDOM, None), (DEDICATED, CHEAP), *((DENSE, b) for b in (*settings.budgets, 1.0))]
    return [Item(seed=n, line=line, budget=b) for n in settings.seeds for line, b in (*lines, (STILL, 1.0))]


def network(settings: Settings, item: Item) -> tuple[VideoViT, dict[float, float]]:
    """A network before any training, and its own budget at each budget of the dense one that it is scored at."""
    D, clips = settings.width, _clips(settings)[0]
    shape = SHAPE | {"width": D, "depth": settings.depth}
    dense = scratch_video(clips.classes, **shape, mean=clips.mean, std=clips.std, seed=item.seed)
    if item.line in (DENSE, STILL):
        b = item.budget or 1.0
        return dense if b == 1 else cheaper_video(dense, b, seed=item.seed), {b: 1.0}
    images = dense.pictures(torch.stack([clips[i][0] for i in range(32)]))
    space = nest(dense.space, images, nest=published(D, 4 * D, SHAPE["heads"]), compensated=False)
    model = with_space(dense, randomly_routed(space) if item.line == RANDOM else space)
    # The router costs something too, which the dense network does not have.
    over, places = dense.full_macs(PATCHES) / model.full_macs(PATCHES), (*settings.budgets, 1.0)
    return model, {b: 1.0 if b == 1 else b * over for b in places if item.budget in (None, b)}


def build(settings: Settings) -> VideoViT:
    """The nested network before any training."""
    return network(settings, Item(seed=0, line=NESTED))[0]


def train(settings: Settings, item: Item, folder: Path | None = None) -> dict[str, Any]:
    """Train one network and score it: `accuracy` by budget and kind, and what was spent as shares of the allowance."""
    (model, own), parts = network(settings, item), _clips(settings)
    if item.line == STILL:
        parts = tuple(part.ordered([part.frames // 2] * part.frames) for part in parts)
    full = network(settings, Item(seed=0, line=STILL))[0].full_macs(PATCHES)
    allowed = settings.compute * settings.clips / settings.batch * full
    budgets = Chosen() if item.budget is None else Fixed(budget=own[item.budget])
    how = Fit(batch=settings.batch, rate=settings.rate, seed=item.seed, budgets=budgets, sandwich=False)
    how, spent = within(model, PATCHES, how, allowed)
    out = None if folder is None else folder / f"seed{item.seed}" / f"{item.line}-{item.budget}".replace(" ", "-")
    tuned, scores = fit(model, parts[0], replace(how, precision="bf16"), out=out), {}
    for place, budget in own.items():
        torch.manual_seed(item.seed)
        logits, labels = predict(tuned, parts[1], budget, batch=200, precision="bf16")
        told, n = logits.argmax(-1), len(MOTIONS)
        scores[str(place)] = {"motion": accuracy(told % n, labels % n), "both": accuracy(told, labels)}
    macs = [model.macs(model.plan(PATCHES, own[b])) / (b * full) for b in own if b < 1]
    return {"training compute": [spent], "multiply-accumulates of a clip": macs, "accuracy": scores}


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """What holds exactly before any training, then accuracy over seeds."""
    claims, every = _exact(settings), items(settings)
    found = side_by_side(partial(train, settings, folder=folder), every, what="Training")
    runs: dict[int, dict[str, dict[str, Any]]] = {seed: {} for seed in settings.seeds}
    for item, result in zip(every, found, strict=True):
        runs[item.seed].setdefault(item.line, {}).update(result["accuracy"])
    for what in ("training compute", "multiply-accumulates of a clip"):
        most = max(share for result in found for share in result[what])
        claims.append(Claim(text=f"{what}, of what is allowed", left=most, relation="<=", right=1, exact=True))
    scores = list(runs.values())
    return Proof(claims=(*claims, *_accuracy(scores, settings)), details={"accuracy": scores})


def curves(details: dict[str, Any]) -> tuple[Repeats, Repeats]:
    """Accuracy on the test part over budgets: of the motion alone, and of garment and motion together."""

    def over(kind: str, told: str) -> Repeats:
        runs = details["accuracy"]
        found = {line: {float(b): [run[line][b][kind] for run in runs] for b in runs[0][line]} for line in runs[0]}
        return Repeats(
            title=f"Moving Fashion-MNIST, {len(runs)} seeds",
            across="budget, share of the dense network's multiply-accumulates",
            upward=f"accuracy of {told}, test part",
            levels={"dense": found[DENSE].pop(1.0)},
            lines={line: found[line] for line in found if line != STILL},
        )

    return over("motion", "the motion"), over("both", "garment and motion")


@cache
def _clips(settings: Settings) -> tuple[Drawn, Drawn]:
    train, test = load_clips(frames=SHAPE["frames"], size=SHAPE["side"], by="picture and motion")
    return drawn(train.limit(settings.clips)), drawn(test.limit(settings.test))


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    nested, (dense, _) = build(settings), network(settings, Item(seed=0, line=DENSE, budget=1.0))
    clips = torch.stack([_clips(settings)[1][i][0] for i in range(8)])
    wanted = dense(clips).tokens
    error = ((nested(clips, budget=1.0).tokens - wanted).norm() / wanted.norm()).item()
    astray, turned = (sum(count(nested, clips, b) for b in settings.budgets) for count in (miscounted, swayed))
    found = {
        "relative error of nested against dense at full budget, untrained": (error, 2e-5),
        "experts of a frame with more or fewer patches than planned": (astray, 0),
        "patches of the first frames routed otherwise when later frames are another clip's": (turned, 0),
    }
    return [Claim(text=what, left=is_, relation="<=", right=most, exact=True) for what, (is_, most) in found.items()]


def _accuracy(runs: list[dict[str, dict[str, Any]]], settings: Settings) -> list[Claim]:
    def mean(line: str, b: float, kind: str = "motion") -> float:
        return statistics.mean(run[line][str(b)][kind] for run in runs)

    claims = []
    for kind, line in itertools.product(("motion", "both"), (NESTED, DEDICATED)):
        lost = mean(DENSE, 1.0, kind) - mean(line, CHEAP, kind)
        text = f"accuracy ({kind}) that {line} loses at 2.3 times fewer multiply-accumulates than dense"
        claims.append(Claim(text=text, left=lost, relation="<=", right=0.002))
    for line, b in itertools.product((DENSE, RANDOM), settings.budgets):
        text, rival = f"accuracy (motion) at {b}, nested against {line}", mean(line, b)
        claims.append(Claim(text=text, left=mean(NESTED, b), relation=">=", right=rival))
    text, half = "accuracy (motion) of dense that sees one frame, against half of that of dense", mean(DENSE, 1.0) / 2
    return [*claims, Claim(text=text, left=mean(STILL, 1.0), relation="<", right=half)]
