"""What matters when an elastic network is trained: each part of the training left out or exchanged, one at a time.

Paper: arXiv 2407.19985. Command: `nestor prove mone_training`.

A DINOv2 ViT-S/14 is fine-tuned on the ELPV solar cells, made elastic and tuned over budgets, from one and the same
dense network under every seed: as by default, and with one thing otherwise (`VARIANTS`), for as many steps; those of a
sandwich cost more. All are scored on held-out cells below the full budget. The mean over seeds and budgets counts,
since one score alone hangs on a few cells. Pictures are small and trainings short, so that all of them end within the
hour.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nestor.measure.by_budget import gathered, numbered, over_budgets
from nestor.measure.likeness import likeness
from nestor.models.saved import load_model
from nestor.recipes.base import Claim, Proof
from nestor.surgery.average import averaged
from nestor.surgery.nest import nest
from nestor.surgery.start import as_published, folded, perturbed, routed, unrotated
from nestor.training.folder import keeping
from nestor.training.parallel import side_by_side
from nestor.training.schedule import Chosen
from nestor.training.scored import aurocs
from nestor.training.settings import Distil
from nestor.training.tuning import Tuning, Variant, tune, tune_dense

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.measure.repeats import Repeats
    from nestor.models.video import Network
    from nestor.models.vit import ViT

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "A part of the training earns its place if the network is worse below the full budget without it."

DEFAULT, AVERAGED = "default", "averaged over seeds"
VARIANTS = {
    DEFAULT: Variant(start=nest),
    "published budgets": Variant(start=nest, how=partial(replace, budgets=Chosen())),
    "sandwich": Variant(start=nest, how=partial(replace, sandwich=True)),
    # Labels alone bear a higher rate.
    "labels alone": Variant(start=nest, how=lambda how: replace(how, rate=3 * how.rate, sandwich=False), taught=False),
    "labels, taught by itself": Variant(start=nest, how=partial(replace, sandwich=True), taught=False),
    "class probabilities alone": Variant(start=nest, how=partial(replace, loss=Distil(prefix=0, patches=0))),
    "no patches": Variant(start=nest, how=partial(replace, loss=Distil(patches=0))),
    "measured router, kept": Variant(start=nest, how=partial(replace, router_rate=0.0)),
    "perturbed router": Variant(start=perturbed),
    "router from nothing": Variant(start=partial(routed, scores=("linear",))),
    "random router": Variant(start=partial(routed, scores=("uniform",))),
    "channels as they come": Variant(start=unrotated),
    "not compensated": Variant(start=partial(nest, compensated=False)),
    "published": Variant(start=as_published),
}
SHOWN = {
    "What is taught": ("labels alone", "labels, taught by itself", "class probabilities alone", "no patches"),
    "Budgets and routers": (
        *("published budgets", "sandwich", "measured router, kept", "perturbed router"),
        *("router from nothing", "random router"),
    ),
    "Where it starts": ("channels as they come", "not compensated", "published"),
}


@dataclass(frozen=True, kw_only=True)
class Settings(Tuning):
    """How the proof is run, beside what `Tuning` says; `quick` trains nothing."""

    size: int = 84
    dense_epochs: int = 4
    epochs: int = 2
    budgets: tuple[float, ...] = (0.65, 0.5, 0.35)

    @classmethod
    def quick(cls) -> Settings:
        """No training, few pictures: the exact claims only."""
        return cls(size=56, seeds=(), cells=32, calibration=16, budgets=(0.5,))


def build(settings: Settings) -> ViT:
    """The default before any training."""
    return nest(folded("dinov2-small"), settings.images())


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Every start equals the dense network at full budget; then AUROC below it, over seeds."""
    claims = _exact(settings)
    if not settings.seeds:
        return Proof(claims=tuple(claims), details={"auroc": {}})
    with keeping(folder) as kept:
        tune_dense(folded("dinov2-small", settings.classes()), settings, 100, kept / "dense")
        pieces = [(seed, name) for name in VARIANTS for seed in settings.seeds]
        found = side_by_side(partial(_trained, settings, kept), pieces, what="Tuning elastic networks")
        together = averaged([load_model(kept / f"seed{seed}" / DEFAULT) for seed in settings.seeds])
        last = _scores(together, load_model(kept / "dense"), settings)
    each = dict(zip(pieces, found, strict=True))
    scores = {name: gathered([each[seed, name] for seed in settings.seeds]) for name in VARIANTS}
    scores[AVERAGED] = gathered([last])
    details = {what: {name: of_seeds[what] for name, of_seeds in scores.items()} for what in last}
    return Proof(claims=(*claims, *_accuracy(details["auroc"])), details=details)


def curves(details: dict[str, Any]) -> tuple[Repeats, ...] | None:
    """AUROC on held-out cells over budgets; None where no network was trained."""
    if not details["auroc"]:
        return None
    found, upward = numbered(details["auroc"]), "AUROC, held-out cells"
    shown = {title: {name: found[name] for name in (DEFAULT, *names)} for title, names in SHOWN.items()}
    return tuple(over_budgets(title, upward, lines) for title, lines in shown.items())


def _exact(settings: Settings) -> list[Claim]:
    dense, images, few = folded("dinov2-small"), settings.images(), settings.parts()[1].limit(32)
    starts = {name: each.start for name, each in VARIANTS.items() if each.start is not nest or name == DEFAULT}
    at = {name: likeness(start(dense, images), dense, few, (1.0,))[1.0] for name, start in starts.items()}
    text = "{}: relative error at full budget, untrained"
    return [
        Claim(text=text.format(name), left=row.error, relation="<=", right=2e-5, exact=True) for name, row in at.items()
    ]


def _trained(settings: Settings, folder: Path, piece: tuple[int, str]) -> dict[str, dict[str, float]]:
    """Train a variant under a seed, and score it."""
    seed, name = piece
    dense, out = load_model(folder / "dense"), folder / f"seed{seed}" / name.replace(", ", "-")
    return _scores(tune(VARIANTS[name], dense, settings, seed, out), dense, settings)


def _scores(network: Network, dense: ViT, settings: Settings) -> dict[str, dict[str, float]]:
    """By budget: AUROC on held-out cells, and the cosine of the class token to the dense network's."""
    _, test = settings.parts()
    alike = likeness(network, dense, test.limit(256), settings.budgets).items()
    return {"auroc": aurocs(network, test, settings.budgets, seed=0), "cosine": {str(b): at.token for b, at in alike}}


def _accuracy(auroc: dict[str, dict[str, list[float]]]) -> list[Claim]:
    mean = {name: statistics.mean(v for values in at.values() for v in values) for name, at in auroc.items()}
    text = "mean AUROC over budgets, default against {}"
    return [
        Claim(text=text.format(name), left=mean[DEFAULT], relation=">=", right=value)
        for name, value in mean.items()
        if name != DEFAULT
    ]
