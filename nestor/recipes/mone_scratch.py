"""MoNE from scratch on Fashion-MNIST, against every rival at equal multiply-accumulates and equal training compute.

Paper: arXiv 2407.19985. Command: `nestor prove mone_scratch`.

All networks have the size of one small vision transformer and, for each seed, its random weights: nested, each patch at
a quarter of the width or all of it, one network for all budgets; its rivals (`nestor.surgery.family`); ordinary ones,
narrower where they must be; nested for one budget alone. And: do wide patches show more of the garment than others?

Every training costs the same multiply-accumulates, so that a cheap network sees more pictures. Rates, schedule and
shape were chosen on pictures of the training part: budgets that lean to the low end serve nested and merging alike
better than even ones, and large patches better than small, for they buy steps. What a rival cannot reach is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nestor.data.kept import decoded
from nestor.measure.by_budget import against, averages, gathered, numbered, over_runs
from nestor.measure.foreground import in_widest
from nestor.measure.likeness import likeness
from nestor.measure.routed import miscounted
from nestor.models.saved import load_model
from nestor.models.scratch import cheaper, scratch
from nestor.recipes.base import Proof, claims
from nestor.surgery.family import Family, family
from nestor.surgery.nest import shape
from nestor.training.equal import Arena, Contestant, Outcome, Terms, compete
from nestor.training.folder import keeping
from nestor.training.schedule import Chosen, InTurn, Leaning
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nestor.data import Pictures
    from nestor.measure.repeats import Repeats
    from nestor.models.vit import ViT
    from nestor.recipes.base import Claim

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "Trained from nothing, one network of nested experts serves every budget beside rivals of equal cost."
SIDE, PATCH, PATCHES = 28, 7, 16
LOOK = {"mean": (0.286,) * 3, "std": (0.353,) * 3}
NESTED, RANDOM, DENSE, DEDICATED = "nested", "random router", "dense of equal MACs", "dedicated"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run.

    Attributes:
        width, heads, depth: of the dense network.
        pictures, test: how many of the two parts.
        compute: of each training, in epochs of the dense network.
        calibration: training pictures that order the channels of nested networks.
        lean: power by which trained budgets lean to the low end.
        budgets, dedicated: at which networks are compared, and those that one is trained for alone.
    """

    width: int = 64
    heads: int = 4
    depth: int = 4
    pictures: int = 20_000
    test: int = 10_000
    compute: float = 1.0
    batch: int = 32
    rate: float = 0.03
    warmup: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2)
    calibration: int = 128
    lean: float = 3.0
    budgets: tuple[float, ...] = (0.25, 0.35, 0.5, 0.65, 0.8)
    dedicated: tuple[float, ...] = (0.25, 0.5, 0.8)

    @classmethod
    def quick(cls) -> Settings:
        """A few steps of small networks: the exact claims, and that all of them can be trained."""
        small = cls(width=32, depth=3, pictures=64, test=32, compute=1, batch=16, calibration=32)
        return replace(small, seeds=(0,), budgets=(0.5,), dedicated=(0.5,))


def build(settings: Settings) -> ViT:
    """The nested network before any training."""
    return _family(settings, 0).nested


def contestants(settings: Settings, seed: int) -> Iterator[Contestant]:
    """All networks of one seed, untrained; budgets lean to the low end but for published ones and widths in turn."""
    found, shares = _family(settings, seed), (*settings.budgets, 1.0)
    arena = Arena(full=found.dense.full_macs(PATCHES), patches=PATCHES, parts=_pictures(settings))
    leaning = Leaning(low=min(settings.budgets), power=settings.lean)
    own = {"published shape": Chosen(), "one width": InTurn(budgets=found.uniform.budgets(PATCHES))}
    yield from (arena.elastic(line, model, own.get(line, leaning), shares) for line, model in found.elastic.items())
    yield from (arena.ordinary(DENSE, found.dense if b == 1 else cheaper(found.dense, b, seed=seed), b) for b in shares)
    yield from (arena.dedicated(DEDICATED, found.nested, b) for b in settings.dedicated)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """What holds exactly, and accuracy over seeds."""
    how = Fit(batch=settings.batch, rate=settings.rate, warmup=settings.warmup, sandwich=False, precision="bf16")
    terms = Terms(how=how, steps=settings.compute * settings.pictures / settings.batch, batch=500)
    with keeping(folder) as kept:
        found = compete(partial(contestants, settings), terms, settings.seeds, kept)
        networks, few = (kept / f"seed{s}" / NESTED for s in settings.seeds), _pictures(settings)[1].limit(1000)
        shown = gathered([in_widest(load_model(each), few, PATCH, settings.budgets) for each in networks])
    return Proof(claims=tuple(_claims(settings, found, shown)), details={"accuracy": found.runs, "foreground": shown})


def curves(details: dict[str, Any]) -> Repeats:
    """Accuracy on the test part over budgets."""
    return over_runs(details["accuracy"], title="Fashion-MNIST from scratch", dense=DENSE, whole=NESTED)


def _pictures(settings: Settings) -> tuple[Pictures, Pictures]:
    return decoded("fashion-mnist", SIDE, settings.pictures, held_out=settings.test, **LOOK)


def _family(settings: Settings, seed: int) -> Family:
    (train, _), D, H = _pictures(settings), settings.width, settings.heads
    sizes = {"side": SIDE, "patch": PATCH, "width": D, "depth": settings.depth, "heads": H, "seed": seed}
    dense = partial(scratch, train.classes, **sizes, **LOOK)
    prefixed, seen = dense(prefix=1, head="class_mean"), train.limit(settings.calibration).stacked()
    return family(dense(), prefixed, seen, shape(D, 4 * D, H, merge=0.0))


def _claims(settings: Settings, found: Outcome, shown: dict[str, dict[str, list[float]]]) -> list[Claim]:
    (train, test), start = _pictures(settings), _family(settings, 0)
    error = likeness(start.nested, start.dense, test.limit(64), (1.0,))[1.0].error
    astray = sum(miscounted(start.nested, train.limit(settings.calibration).stacked(), b) for b in settings.budgets)
    exact = {
        "relative error of nested against dense at full budget, untrained": (error, "<=", 2e-5),
        "experts of a picture with more or fewer patches than planned": (astray, "==", 0),
        "multiply-accumulates of any network below the full budget, of its budget": (found.spent, "<=", 1),
        "most training compute of any network, of what is allowed": (found.paid[1], "<=", 1),
    }
    rows = {"least training compute of any network, of what is allowed": (found.paid[0], ">=", 0.99)}
    mean, seen = averages(numbered(gathered(found.runs))), averages(numbered(shown))
    for pair in against(mean, NESTED, [line for line in mean if line not in (NESTED, DEDICATED)], settings.budgets):
        sign = ">" if pair.rival == RANDOM and pair.budget <= 0.35 else ">="
        rows[f"accuracy {pair.told}"] = (pair.ours, sign, pair.theirs)
    for pair in against(mean, NESTED, (DEDICATED,), settings.dedicated):
        rows[f"accuracy lost at {pair.budget} against dedicated"] = (pair.theirs - pair.ours, "<=", 0.005)
    for pair in against(seen, "widest", ("all",), settings.budgets):
        rows[f"share of garment in patches {pair.told}"] = (pair.ours, ">", pair.theirs)
    return [*claims(exact, exact=True), *claims(rows)]
