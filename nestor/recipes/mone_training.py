"""What matters when an elastic network is trained: each part of the training left out or exchanged, one at a time.

Paper: arXiv 2407.19985. Command: `nestor prove mone_training`.

A DINOv2 ViT-S/14 is fine-tuned on the ELPV solar cells, made elastic and tuned over budgets, from one and the same
dense network under every seed: as by default, and with one thing otherwise (`variants`), for as many steps; those of a
sandwich cost more. All are scored on held-out cells below the full budget. The mean over seeds and budgets counts,
since one score alone hangs on a few cells. Pictures are small and trainings short, so that all of them end within the
hour.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nestor.data import Augment, load_splits
from nestor.measure.likeness import likeness
from nestor.measure.repeats import Repeats
from nestor.measure.score import auroc
from nestor.models.pretrained import read
from nestor.models.saved import load_model
from nestor.models.uniform import routed_by
from nestor.recipes.base import Claim, Proof
from nestor.surgery.average import averaged
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest, published, with_head
from nestor.training.fit import fit
from nestor.training.parallel import side_by_side
from nestor.training.predict import predict
from nestor.training.probe import probe
from nestor.training.schedule import Chosen, Fixed
from nestor.training.settings import Distil, Fit

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.data import Pictures
    from nestor.models.vit import ViT

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "A part of the training earns its place if the network is worse below the full budget without it."

DEFAULT, AVERAGED = "default", "averaged over seeds"
SHOWN = {
    "What is taught": ("labels alone", "labels, taught by itself", "class probabilities alone", "no patches"),
    "Budgets and routers": (
        *("published budgets", "sandwich", "measured router, kept", "perturbed router"),
        *("router from nothing", "random router"),
    ),
    "Where it starts": ("channels as they come", "not compensated", "published"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `quick` trains nothing.

    Attributes:
        size: of the cells, in pixels.
        seeds: of the trainings; none for no training.
        dense_epochs, dense_rate: of the dense network.
        epochs, rate: of everything that starts from it.
        batch: cells in a step.
        calibration: training cells that nested networks are fitted to in closed form.
        cells: of each part; None takes all.
        budgets: at which networks are scored.
    """

    size: int = 84
    seeds: tuple[int, ...] = (0, 1, 2)
    dense_epochs: int = 4
    dense_rate: float = 1e-3
    epochs: int = 2
    rate: float = 3e-4
    batch: int = 32
    calibration: int = 128
    cells: int | None = None
    budgets: tuple[float, ...] = (0.65, 0.5, 0.35)

    @classmethod
    def quick(cls) -> Settings:
        """No training, few pictures: the exact claims only."""
        return cls(size=56, seeds=(), cells=32, calibration=16, budgets=(0.5,))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a network starts as, how it is trained, and whether the dense network teaches it."""

    start: Callable[[ViT, torch.Tensor], ViT] = nest
    how: Callable[[Fit], Fit] = lambda how: how
    taught: bool = True


def variants() -> dict[str, Variant]:
    """All that are compared, by name; the first is the default."""

    def routed(*scores: str) -> Callable[[ViT, torch.Tensor], ViT]:
        return lambda dense, images: routed_by(nest(dense, images), scores)

    def perturbed(dense: ViT, images: torch.Tensor) -> ViT:
        model = nest(dense, images)
        return routed_by(model, (*model.settings.scores, "perturbed"))

    def changed(**fields: Any) -> Callable[[Fit], Fit]:
        return lambda how: replace(how, **fields)

    return {
        DEFAULT: Variant(),
        "published budgets": Variant(how=changed(budgets=Chosen())),
        "sandwich": Variant(how=changed(sandwich=True)),
        # Labels alone bear a higher rate.
        "labels alone": Variant(how=lambda how: replace(how, rate=3 * how.rate, sandwich=False), taught=False),
        "labels, taught by itself": Variant(how=changed(sandwich=True), taught=False),
        "class probabilities alone": Variant(how=changed(loss=Distil(prefix=0, patches=0))),
        "no patches": Variant(how=changed(loss=Distil(patches=0))),
        "measured router, kept": Variant(how=changed(router_rate=0.0)),
        "perturbed router": Variant(start=perturbed),
        "router from nothing": Variant(start=routed("linear")),
        "random router": Variant(start=routed("uniform")),
        "channels as they come": Variant(start=lambda dense, images: nest(dense, images, basis=_as_it_is(dense))),
        "not compensated": Variant(start=partial(nest, compensated=False)),
        "published": Variant(start=lambda dense, images: nest(dense, images, nest=published(*_sizes(dense)))),
    }


def build(settings: Settings) -> ViT:
    """The default before any training."""
    return nest(fold(read("dinov2-small")), _calibration(_parts(settings)[0], settings))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Every start equals the dense network at full budget; then AUROC below it, over seeds."""
    claims = _exact(settings)
    if not settings.seeds:
        return Proof(claims=tuple(claims), details={"auroc": {}})
    with tempfile.TemporaryDirectory() as passing:
        kept = Path(passing) if folder is None else folder
        _dense(settings, kept)
        pieces = [(seed, name) for name in variants() for seed in settings.seeds]
        found = side_by_side(partial(_trained, settings, kept), pieces, what="Tuning elastic networks")
        together = averaged([load_model(kept / f"seed{seed}" / DEFAULT) for seed in settings.seeds])
        last = _scores(together, load_model(kept / "dense"), settings)
    scores: dict[str, list[dict[str, dict[str, float]]]] = {}
    for (_, name), each in zip(pieces, found, strict=True):
        scores.setdefault(name, []).append(each)
    scores[AVERAGED] = [last]
    details = {
        what: {
            name: {b: [each[what][b] for each in of_seeds] for b in of_seeds[0][what]}
            for name, of_seeds in scores.items()
        }
        for what in last
    }
    return Proof(claims=(*claims, *_accuracy(details["auroc"])), details=details)


def curves(details: dict[str, Any]) -> tuple[Repeats, ...] | None:
    """AUROC on held-out cells over budgets; None where no network was trained."""
    if not details["auroc"]:
        return None
    found = {name: {float(b): values for b, values in at.items()} for name, at in details["auroc"].items()}
    return tuple(
        Repeats(
            title=title,
            across="budget, share of the dense network's multiply-accumulates",
            upward="AUROC, held-out cells",
            lines={name: found[name] for name in (DEFAULT, *names)},
            levels={},
        )
        for title, names in SHOWN.items()
    )


@cache
def _parts(settings: Settings) -> tuple[Pictures, Pictures]:
    parts = load_splits("elpv", size=settings.size)
    train, test = (part if settings.cells is None else part.limit(settings.cells) for part in parts)
    return train.cached(), test.cached()


def _calibration(train: Pictures, settings: Settings) -> torch.Tensor:
    return train.limit(settings.calibration).stacked()


def _sizes(dense: ViT) -> tuple[int, int, int]:
    full = dense.settings.nest
    return full.widths[0], full.hidden[0], full.heads[0]


def _as_it_is(dense: ViT) -> torch.Tensor:
    return torch.eye(dense.settings.nest.widths[0])


def _exact(settings: Settings) -> list[Claim]:
    dense, (train, test) = fold(read("dinov2-small")), _parts(settings)
    images, starts = _calibration(train, settings), {name: each.start for name, each in variants().items()}
    return [
        Claim(
            text=f"{name}: relative error at full budget, untrained",
            left=likeness(start(dense, images), dense, test.limit(32), (1.0,))[1.0].error,
            relation="<=",
            right=2e-5,
            exact=True,
        )
        for name, start in starts.items()
        if start is not nest or name == DEFAULT
    ]


def _how(settings: Settings, seed: int) -> Fit:
    flip = Augment(flip=True)
    return Fit(
        epochs=settings.epochs, rate=settings.rate, batch=settings.batch, seed=seed, precision="bf16", augment=flip
    )


def _dense(settings: Settings, folder: Path) -> None:
    """Tune the dense network, and keep it."""
    train, _ = _parts(settings)
    start = probe(with_head(fold(read("dinov2-small")), train.classes), train, l2=0.1)
    how = replace(_how(settings, 100), epochs=settings.dense_epochs, rate=settings.dense_rate, budgets=Fixed())
    fit(start, train, how, out=folder / "dense")


def _trained(settings: Settings, folder: Path, piece: tuple[int, str]) -> dict[str, dict[str, float]]:
    """Train a variant under a seed, and score it."""
    seed, name = piece
    train, _ = _parts(settings)
    dense, variant = load_model(folder / "dense"), variants()[name]
    start = variant.start(dense, _calibration(train, settings))
    teacher = dense if variant.taught else None
    how = variant.how(_how(settings, seed))
    tuned = fit(start, train, how, teacher=teacher, out=folder / f"seed{seed}" / name.replace(", ", "-"))
    return _scores(tuned, dense, settings)


def _scores(network: ViT, dense: ViT, settings: Settings) -> dict[str, dict[str, float]]:
    """By budget: AUROC on held-out cells, and the cosine of the class token to the dense network's."""
    test, found = _parts(settings)[1], {}
    alike = likeness(network, dense, test.limit(256), settings.budgets)
    for budget in settings.budgets:
        torch.manual_seed(0)
        logits, labels = predict(network, test, budget=budget, precision="bf16")
        found[str(budget)] = auroc(logits.softmax(-1)[:, 1], labels)
    return {"auroc": found, "cosine": {str(budget): at.token for budget, at in alike.items()}}


def _accuracy(auroc: dict[str, dict[str, list[float]]]) -> list[Claim]:
    mean = {name: statistics.mean(v for values in at.values() for v in values) for name, at in auroc.items()}
    text = "mean AUROC over budgets, default against {}"
    return [
        Claim(text=text.format(name), left=mean[DEFAULT], relation=">=", right=value)
        for name, value in mean.items()
        if name != DEFAULT
    ]
