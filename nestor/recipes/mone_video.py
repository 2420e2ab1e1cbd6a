"""MoNE on moving pictures: the spatial encoder of a factorised video transformer, with nested experts.

Paper: arXiv 2407.19985. Command: `nestor prove mone_video`.

Garments move, grow or turn; the classes are garment and motion together, and no single frame tells the motion. A small
transformer sees tubelets of two frames, index by index, and gives a class token of each to a temporal one; its patches
take one of four widths, in every index as many of each as the budget says. Beside it, from the same random weights: a
router that draws patches by lot, in training too; dense of equal MACs, an ordinary network for each budget, narrower
where it must be; dedicated, the nested network trained for one budget alone, as the paper trains it; and one frame, the
dense network on clips that stand still, in training too.

Each training costs equal multiply-accumulates: a cheap network sees more clips. Rates were chosen on training clips.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from nestor.data.drawn import DrawnParts, moving_garments
from nestor.measure.by_budget import against, averages, gathered, numbered, of_kind, over_runs
from nestor.measure.exact import token_error
from nestor.measure.motions import told_motions
from nestor.measure.routed import miscounted, swayed
from nestor.models.scratch_video import cheaper_video, scratch_video, with_space
from nestor.models.uniform import randomly_routed
from nestor.recipes.base import Claim, Proof
from nestor.surgery.nest import published
from nestor.surgery.space import nested_space
from nestor.training.equal import Arena, Contestant, Outcome, Terms, compete
from nestor.training.schedule import Chosen
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nestor.measure.repeats import Repeats
    from nestor.models.video import VideoViT

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "On clips, the patches of each frame are routed by themselves: less than half the cost at dense accuracy."
NESTED, RANDOM, DENSE, DEDICATED, STILL = "nested", "random router", "dense of equal MACs", "dedicated", "one frame"
# The paper's network is 2.3 times as cheap as the dense one where it is as accurate.
CHEAP = 0.434
PATCHES, SHAPE = 16, {"side": 24, "patch": 6, "heads": 4, "frames": 8, "tubelet": 2, "temporal": 1}


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


def build(settings: Settings) -> VideoViT:
    """The nested network before any training."""
    return _start(settings, 0)[1]


def contestants(settings: Settings, seed: int) -> Iterator[Contestant]:
    """All networks of one seed before any training."""
    (dense, nested), (learn, judge), shares = _start(settings, seed), _clips(settings), (*settings.budgets, 1.0)
    random = with_space(dense, randomly_routed(nested.space))
    arena = Arena(full=dense.full_macs(PATCHES), patches=PATCHES, parts=(learn, judge))
    # Trainings over all budgets have always been kept under these names.
    yield arena.elastic(NESTED, nested, Chosen(), shares, name=f"{NESTED} None")
    yield arena.elastic(RANDOM, random, Chosen(), shares, name=f"{RANDOM} None")
    yield arena.dedicated(DEDICATED, nested, CHEAP)
    yield from (arena.ordinary(DENSE, dense if b == 1 else cheaper_video(dense, b, seed=seed), b) for b in shares)
    yield replace(arena, parts=(learn.still(), judge.still())).ordinary(STILL, dense, 1.0)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """What holds exactly, and accuracy over seeds."""
    how = Fit(batch=settings.batch, rate=settings.rate, sandwich=False, precision="bf16")
    terms = Terms(how=how, steps=settings.compute * settings.clips / settings.batch, batch=200, score=told_motions)
    found = compete(partial(contestants, settings), terms, settings.seeds, folder)
    return Proof(claims=(*_exact(settings, found), *_accuracy(settings, found.runs)), details={"accuracy": found.runs})


def curves(details: dict[str, Any]) -> tuple[Repeats, Repeats]:
    """Accuracy on the test part over budgets: of the motion alone, and of garment and motion together."""
    motion, both = (of_kind(details["accuracy"], kind) for kind in ("motion", "both"))
    draw = partial(over_runs, title="Moving Fashion-MNIST", dense=DENSE, without=(STILL,))
    return draw(motion, told="accuracy of the motion"), draw(both, told="accuracy of garment and motion")


@cache
def _clips(settings: Settings) -> DrawnParts:
    return moving_garments(frames=SHAPE["frames"], size=SHAPE["side"], train=settings.clips, test=settings.test)


def _start(settings: Settings, seed: int) -> tuple[VideoViT, VideoViT]:
    """The dense network, and the same with nested experts."""
    (clips, _), shape = _clips(settings), SHAPE | {"width": settings.width, "depth": settings.depth}
    dense = scratch_video(clips.classes, **shape, mean=clips.mean, std=clips.std, seed=seed)
    form = published(settings.width, 4 * settings.width, SHAPE["heads"])
    return dense, nested_space(dense, clips.stacked(32), form, compensated=False)


def _exact(settings: Settings, found: Outcome) -> list[Claim]:
    (dense, nested), clips = _start(settings, 0), _clips(settings)[1].stacked(8)
    astray, turned = (sum(count(nested, clips, b) for b in settings.budgets) for count in (miscounted, swayed))
    rows = {
        "relative error of nested against dense at full budget, untrained": (token_error(nested, dense, clips), 2e-5),
        "experts of a frame with more or fewer patches than planned": (astray, 0),
        "patches of the first frames routed otherwise when later frames are another clip's": (turned, 0),
        "training compute, of what is allowed": (found.paid[1], 1),
        "multiply-accumulates of a clip, of what is allowed": (found.spent, 1),
    }
    return [Claim(text=what, left=is_, relation="<=", right=most, exact=True) for what, (is_, most) in rows.items()]


def _accuracy(settings: Settings, runs: list[dict[str, Any]]) -> list[Claim]:
    claims, mean = [], {kind: averages(numbered(gathered(of_kind(runs, kind)))) for kind in ("motion", "both")}
    for (kind, at), line in itertools.product(mean.items(), (NESTED, DEDICATED)):
        lost = at[DENSE][1.0] - at[line][CHEAP]
        text = f"accuracy ({kind}) that {line} loses at 2.3 times fewer multiply-accumulates than dense"
        claims.append(Claim(text=text, left=lost, relation="<=", right=0.002))
    for pair in against(mean["motion"], NESTED, (DENSE, RANDOM), settings.budgets):
        claims.append(Claim(text=f"accuracy (motion) {pair.told}", left=pair.ours, relation=">=", right=pair.theirs))
    still, moving = (mean["motion"][line][1.0] for line in (STILL, DENSE))
    text = "accuracy (motion) of dense that sees one frame, against half of that of dense"
    return [*claims, Claim(text=text, left=still, relation="<", right=moving / 2)]
