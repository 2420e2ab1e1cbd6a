"""MoNE from scratch on Fashion-MNIST, against every rival at equal multiply-accumulates and equal training compute.

Paper: arXiv 2407.19985. Command: `nestor prove mone_scratch`.

All networks have the size of one small vision transformer and, for each seed, its random weights:
- nested: each patch at a quarter of the width or at all of it, one network for all budgets, trained over all of them,
  the low ones most;
- published shape: the same with four widths that halve from one to the next, and all hidden units at each, trained over
  the published budgets;
- random router: nested with patches drawn by lot, in training too;
- one width: all patches at the same one (MatViT), trained over the widths in turn; a budget gets the widest that fits,
  since mixtures of widths over the layers are not tried;
- skipping: patches at full width or not at all (Mixture-of-Depths), decided once at the bottom, at any budget; as
  published, seven eighths of the tokens skip every other layer; trained over budgets as nested is;
- pruning (EViT; a class token more, and a block earlier than published, so that it reaches low budgets) and merging
  (ToMe) of the dense network's tokens, trained over budgets as nested is;
- dense of equal MACs: an ordinary network for each budget, narrower where it must be;
- dedicated: the nested network trained for one budget alone.

Every training costs the same multiply-accumulates, so that a cheap network sees more pictures. Rates, schedule and
shape were chosen on pictures of the training part: budgets that lean to the low end serve nested and merging alike
better than even ones, since they pay for more steps. Patches are larger than usual for pictures so small, since four
times fewer of them allow four times as many steps in the hour. Budgets that a rival cannot reach are left out.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from nestor.data import load_splits
from nestor.data.named import FASHION_CLASSES
from nestor.layers.nested import Nest
from nestor.measure.likeness import likeness
from nestor.measure.repeats import Repeats
from nestor.measure.score import accuracy
from nestor.models.merged import Merged
from nestor.models.pruned import Pruned
from nestor.models.scratch import cheaper, scratch
from nestor.models.uniform import Uniform, randomly_routed
from nestor.recipes.base import Claim, Proof
from nestor.surgery.nest import nest, published, shape
from nestor.training.fit import fit
from nestor.training.parallel import side_by_side
from nestor.training.predict import predict
from nestor.training.schedule import Chosen, Fixed, InTurn, Leaning
from nestor.training.settings import Fit
from nestor.training.within import within
from nestor.types import Sparse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from nestor.data import Pictures
    from nestor.models.video import Network
    from nestor.models.vit import ViT
    from nestor.training.schedule import Budgets

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "Trained from nothing, one network of nested experts serves every budget beside rivals of equal cost."

SIDE, PATCH, PATCHES = 28, 7, 16
MEAN, STD = (0.286,) * 3, (0.353,) * 3
DENSE = "dense of equal MACs"


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Contestant:
    """A network that is trained over `budgets` and then scored for a line: `places` names its own budget at each."""

    line: str
    model: Network
    budgets: Budgets
    places: Mapping[float, float]


def build(settings: Settings) -> ViT:
    """The nested network before any training."""
    return _start(settings, 0, _images(_pictures(settings)[0], settings))[1]


def contestants(settings: Settings, seed: int, images: torch.Tensor) -> Iterator[Contestant]:
    """All networks of one seed before any training; `images` (n, 3, 28, 28) order the channels of nested ones."""
    D, H, shares = settings.width, settings.heads, (*settings.budgets, 1.0)
    dense, nested = _start(settings, seed, images)
    as_published = nest(dense, images, nest=published(D, 4 * D, H), compensated=False)
    skips = nest(dense, images, nest=Nest(widths=(0, D), hidden=(0, 4 * D), heads=(0, H)), compensated=False)
    one, leaning = Uniform(as_published), Leaning(low=min(settings.budgets), power=settings.lean)
    elastic: dict[str, tuple[Network, Budgets]] = {
        "nested": (nested, leaning),
        "published shape": (as_published, Chosen()),
        "random router": (randomly_routed(nested), leaning),
        "one width": (one, InTurn(budgets=one.budgets(PATCHES))),
        "skipping": (skips, leaning),
        "pruning": (Pruned(_dense(settings, seed, prefix=1, head="class_mean"), stages=(0, 1, 2)), leaning),
        "merging": (Merged(dense), leaning),
    }
    for line, (model, budgets) in elastic.items():
        own = {b: 1.0 if b == 1 else b * dense.full_macs(PATCHES) / model.full_macs(PATCHES) for b in shares}
        within = {b: budget for b, budget in own.items() if budget >= model.least_budget(PATCHES)}
        yield Contestant(line=line, model=model, budgets=budgets, places=within)
    for b in shares:
        narrow = dense if b == 1 else cheaper(dense, b, seed=seed)
        yield Contestant(line=DENSE, model=narrow, budgets=Fixed(), places={b: 1.0})
    for b in settings.dedicated:
        own = b * dense.full_macs(PATCHES) / nested.full_macs(PATCHES)
        yield Contestant(line="dedicated", model=nested, budgets=Fixed(budget=own), places={b: own})


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """What holds exactly before any training, then accuracy over seeds."""
    train, test = _pictures(settings)
    images = _images(train, settings)
    claims = _exact(settings, images, test.limit(64))
    places = range(sum(1 for _ in contestants(settings, 0, images)))
    pieces = [(seed, place) for seed in settings.seeds for place in places]
    found = side_by_side(partial(_scored, settings, folder), pieces, what="Training")
    runs: dict[int, dict[str, dict[str, float]]] = {seed: {} for seed in settings.seeds}
    for (seed, _), (line, scores, _) in zip(pieces, found, strict=True):
        runs[seed].setdefault(line, {}).update(scores)
    paid, text = [share for *_, share in found], "training compute of any network, of what is allowed"
    claims.append(Claim(text=f"most {text}", left=max(paid), relation="<=", right=1, exact=True))
    claims.append(Claim(text=f"least {text}", left=min(paid), relation=">=", right=0.99))
    of_seeds = list(runs.values())
    return Proof(claims=(*claims, *_accuracy(of_seeds, settings)), details={"accuracy": of_seeds})


def _scored(settings: Settings, folder: Path | None, piece: tuple[int, int]) -> tuple[str, dict[str, float], float]:
    """Train one network of a seed: its line, its accuracy at each of its places, and what its training cost."""
    seed, place = piece
    train, test = _pictures(settings)
    each = next(islice(contestants(settings, seed, _images(train, settings)), place, None))
    how, share = _training(each, settings, seed)
    name = each.line if len(each.places) > 1 else f"{each.line} {min(each.places)}"
    tuned = fit(each.model, train, how, out=folder and folder / f"seed{seed}" / name.replace(" ", "-"))
    scores = {}
    for at, budget in each.places.items():
        torch.manual_seed(seed)
        logits, labels = predict(tuned, test, budget, batch=500, precision=how.precision)
        scores[str(at)] = accuracy(logits.argmax(-1), labels)
    return each.line, scores, share


def curves(details: dict[str, Any]) -> Repeats:
    """Accuracy on the test part over budgets."""
    runs = details["accuracy"]
    found = {line: {float(b): [run[line][b] for run in runs] for b in runs[0][line]} for line in runs[0]}
    return Repeats(
        title=f"Fashion-MNIST from scratch, {len(runs)} seeds",
        across="budget, share of the dense network's multiply-accumulates",
        upward="accuracy, test part",
        lines=found,
        levels={"dense": found[DENSE].pop(1.0)},
        least=min(min(values) for values in found["nested"].values()) - 0.03,
    )


@cache
def _pictures(settings: Settings) -> tuple[Pictures, Pictures]:
    train, test = load_splits("fashion-mnist", size=SIDE, mean=MEAN, std=STD)
    return train.limit(settings.pictures).cached(), test.limit(settings.test).cached()


def _images(train: Pictures, settings: Settings) -> torch.Tensor:
    return train.limit(settings.calibration).stacked()


def _dense(settings: Settings, seed: int, **more: Any) -> ViT:
    sizes = {"width": settings.width, "depth": settings.depth, "heads": settings.heads}
    return scratch(FASHION_CLASSES, side=SIDE, patch=PATCH, mean=MEAN, std=STD, seed=seed, **sizes, **more)


def _start(settings: Settings, seed: int, images: torch.Tensor) -> tuple[ViT, ViT]:
    dense = _dense(settings, seed)
    form = shape(settings.width, 4 * settings.width, settings.heads, merge=0.0)
    return dense, nest(dense, images, nest=form, compensated=False)


def _training(each: Contestant, settings: Settings, seed: int) -> tuple[Fit, float]:
    """As many steps as the compute pays for, and the share of it that they take."""
    how = Fit(
        batch=settings.batch,
        rate=settings.rate,
        warmup=settings.warmup,
        seed=seed,
        budgets=each.budgets,
        sandwich=False,
        precision="bf16",
    )
    allowed = settings.compute * settings.pictures / settings.batch * _dense(settings, seed).full_macs(PATCHES)
    return within(each.model, PATCHES, how, allowed)


@torch.no_grad()
def _exact(settings: Settings, images: torch.Tensor, few: Pictures) -> list[Claim]:
    dense, nested = _start(settings, 0, images)
    astray, spent = 0, []
    for b in settings.budgets:
        plan = torch.tensor(nested.plan(PATCHES, b))
        (routing,) = nested(images, budget=b).routings
        assert isinstance(routing, Sparse)
        astray += int((torch.nn.functional.one_hot(routing.index.squeeze(-1), len(plan)).sum(1) != plan).sum())
    for each in contestants(settings, 0, images):
        for place, own in each.places.items():
            if place < 1:
                spent.append(each.model.macs(each.model.plan(PATCHES, own)) / (place * dense.full_macs(PATCHES)))
    error = likeness(nested, dense, few, (1.0,))[1.0].error
    found = (
        ("relative error of nested against dense at full budget, untrained", error, "<=", 2e-5),
        ("experts of a picture with more or fewer patches than planned", astray, "==", 0),
        ("multiply-accumulates of any network below the full budget, of its budget", max(spent), "<=", 1),
    )
    return [Claim(text=text, left=left, relation=is_, right=right, exact=True) for text, left, is_, right in found]


def _accuracy(runs: list[dict[str, dict[str, float]]], settings: Settings) -> list[Claim]:
    def mean(line: str, b: float) -> float:
        return statistics.mean(run[line][str(b)] for run in runs)

    claims = []
    for line in (line for line in runs[0] if line not in ("nested", "dedicated")):
        for b in (b for b in settings.budgets if str(b) in runs[0][line]):
            relation = ">" if line == "random router" and b <= 0.35 else ">="
            text = f"accuracy at {b}, nested against {line}"
            claims.append(Claim(text=text, left=mean("nested", b), relation=relation, right=mean(line, b)))
    for b in settings.dedicated:
        lost = mean("dedicated", b) - mean("nested", b)
        claims.append(Claim(text=f"accuracy lost at {b} against dedicated", left=lost, relation="<=", right=0.005))
    return claims
