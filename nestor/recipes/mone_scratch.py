"""MoNE from scratch on Fashion-MNIST, against every rival at equal multiply-accumulates and equal training compute.

Paper: arXiv 2407.19985. Command: `nestor prove mone_scratch`.

All networks have the size of one small vision transformer and, for each seed, its random weights: nested, each patch at
a quarter of the width or at all of it, one network for all budgets; its rivals, as `nestor.surgery.family` makes them:
the published shape, a random router, one width (MatViT), skipping (Mixture-of-Depths), pruning (EViT) and merging
(ToMe); an ordinary network for each budget, narrower where it must be; and nested trained for one budget alone.

Every training costs the same multiply-accumulates, so that a cheap network sees more pictures. Rates, schedule and
shape were chosen on pictures of the training part: budgets that lean to the low end serve nested and merging alike
better than even ones, since they pay for more steps. Patches are larger than usual for pictures so small, since four
times fewer of them allow four times as many steps in the hour. Budgets that a rival cannot reach are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nestor.data.kept import decoded
from nestor.measure.by_budget import against, averages, gathered, numbered, over_runs
from nestor.measure.likeness import likeness
from nestor.measure.routed import miscounted
from nestor.models.scratch import cheaper, scratch
from nestor.recipes.base import Claim, Proof
from nestor.surgery.family import Family, family
from nestor.surgery.nest import shape
from nestor.training.equal import Arena, Contestant, Outcome, Terms, compete
from nestor.training.schedule import Chosen, InTurn, Leaning
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nestor.data import Pictures
    from nestor.measure.repeats import Repeats
    from nestor.models.vit import ViT

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
        budgets: at which networks are compared.
        dedicated: budgets that a network is trained for alone.
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
    found = compete(partial(contestants, settings), terms, settings.seeds, folder)
    return Proof(claims=(*_exact(settings, found), *_trained(settings, found)), details={"accuracy": found.runs})


def curves(details: dict[str, Any]) -> Repeats:
    """Accuracy on the test part over budgets."""
    return over_runs(details["accuracy"], title="Fashion-MNIST from scratch", dense=DENSE, whole=NESTED)


def _pictures(settings: Settings) -> tuple[Pictures, Pictures]:
    return decoded("fashion-mnist", SIDE, settings.pictures, held_out=settings.test, **LOOK)


def _family(settings: Settings, seed: int) -> Family:
    (train, _), D, H = _pictures(settings), settings.width, settings.heads
    sizes = {"side": SIDE, "patch": PATCH, "width": D, "depth": settings.depth, "heads": H, "seed": seed}
    dense = partial(scratch, train.classes, **sizes, **LOOK)
    prefixed = dense(prefix=1, head="class_mean")
    return family(dense(), prefixed, train.limit(settings.calibration).stacked(), shape(D, 4 * D, H, merge=0.0))


def _exact(settings: Settings, found: Outcome) -> list[Claim]:
    (train, test), start = _pictures(settings), _family(settings, 0)
    error = likeness(start.nested, start.dense, test.limit(64), (1.0,))[1.0].error
    astray = sum(miscounted(start.nested, train.limit(settings.calibration).stacked(), b) for b in settings.budgets)
    rows = (
        ("relative error of nested against dense at full budget, untrained", error, "<=", 2e-5),
        ("experts of a picture with more or fewer patches than planned", astray, "==", 0),
        ("multiply-accumulates of any network below the full budget, of its budget", found.spent, "<=", 1),
        ("most training compute of any network, of what is allowed", found.paid[1], "<=", 1),
    )
    return [Claim(text=text, left=left, relation=is_, right=right, exact=True) for text, left, is_, right in rows]


def _trained(settings: Settings, found: Outcome) -> list[Claim]:
    text, mean = "least training compute of any network, of what is allowed", averages(numbered(gathered(found.runs)))
    claims = [Claim(text=text, left=found.paid[0], relation=">=", right=0.99)]
    rivals = [line for line in mean if line not in (NESTED, DEDICATED)]
    for pair in against(mean, NESTED, rivals, settings.budgets):
        relation = ">" if pair.rival == RANDOM and pair.budget <= 0.35 else ">="
        claims.append(Claim(text=f"accuracy {pair.told}", left=pair.ours, relation=relation, right=pair.theirs))
    for pair in against(mean, NESTED, (DEDICATED,), settings.dedicated):
        lost, text = pair.theirs - pair.ours, f"accuracy lost at {pair.budget} against dedicated"
        claims.append(Claim(text=text, left=lost, relation="<=", right=0.005))
    return claims
