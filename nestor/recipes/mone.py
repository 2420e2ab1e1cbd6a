"""MoNE: Mixture of Nested Experts, on a pretrained network and real solar cells.

Paper: arXiv 2407.19985. Command: `nestor prove mone`.

A dense DINOv2 ViT-S/14 is fine-tuned on the ELPV solar cells; a nested copy is made of it and taught by it over
sampled budgets; the dense network is tuned on for as many epochs. All are scored on held-out cells, the nested one at
several budgets, beside rivals of equal multiply-accumulates. Rates and epochs were chosen on a part of the training
cells.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from nestor.data import Augment, load_splits
from nestor.measure.likeness import likeness
from nestor.measure.repeats import Repeats
from nestor.measure.score import auroc
from nestor.models.merged import Merged
from nestor.models.pretrained import read
from nestor.models.pruned import Pruned
from nestor.models.uniform import Uniform, randomly_routed
from nestor.recipes.base import Claim, Proof
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest, published, shape, with_head
from nestor.training.fit import fit
from nestor.training.predict import predict
from nestor.training.probe import probe
from nestor.training.schedule import Fixed, Sampled
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.data import Pictures
    from nestor.layers.nested import Nest
    from nestor.models.vit import ViT

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "Experts are prefixes of the same weights; a router gives each token one of them; their capacities are a dial."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; pictures None takes all, calibration is a number of training pictures."""

    size: int = 112
    seeds: tuple[int, ...] = (0, 1, 2)
    dense_epochs: int = 5
    dense_rate: float = 1e-3
    epochs: int = 4
    rate: float = 3e-4
    batch: int = 32
    calibration: int = 128
    pictures: int | None = None
    budgets: tuple[float, ...] = (1.0, 0.65, 0.5, 0.35, 0.25)

    @classmethod
    def quick(cls) -> Settings:
        """No training, few pictures: the exact claims only."""
        return cls(size=56, seeds=(), pictures=32, calibration=16, budgets=(1.0, 0.5))


def build(settings: Settings) -> ViT:
    """The nested network before any training."""
    train, _ = load_splits("elpv", size=settings.size)
    return nest(fold(read("dinov2-small")), _calibration(train, settings))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exactness and fidelity of the untrained network, then accuracy over seeds."""
    train, test = load_splits("elpv", size=settings.size)
    if settings.pictures is not None:
        train, test = train.limit(settings.pictures), test.limit(settings.pictures)
    train, test = train.cached(), test.cached()
    dense = fold(read("dinov2-small"))
    images = _calibration(train, settings)
    claims, details = _untrained(dense, images, test)
    runs = [_run(dense, images, train, test, settings, seed, folder) for seed in settings.seeds]
    details["auroc"] = runs
    return Proof(claims=(*claims, *_accuracy(runs)), details=details)


def curves(details: dict[str, Any]) -> Repeats | None:
    """AUROC on held-out cells over budgets; None where no network was trained."""
    runs = details["auroc"]
    if not runs:
        return None
    found = {name: {float(b): [run[name][b] for run in runs] for b in runs[0][name]} for name in runs[0]}
    return Repeats(
        title=f"Defective solar cells, {len(runs)} seeds",
        across="budget, share of the dense network's multiply-accumulates",
        upward="AUROC, held-out cells",
        lines={name: points for name, points in found.items() if not name.startswith("dense")},
        levels={name: points[1.0] for name, points in found.items() if name.startswith("dense")},
        least=min(min(values) for values in found["nested"].values()) - 0.03,
    )


def _calibration(train: Pictures, settings: Settings) -> torch.Tensor:
    few = train.limit(settings.calibration)
    return torch.stack([few[i][0] for i in range(len(few))])


def _untrained(dense: ViT, images: torch.Tensor, test: Pictures) -> tuple[list[Claim], dict[str, Any]]:
    sizes = (dense.settings.nest.widths[0], dense.settings.nest.hidden[0], dense.settings.nest.heads[0])
    shapes: dict[str, Nest] = {
        "default": shape(*sizes),
        "default without merging": shape(*sizes, merge=0.0),
        "three widths": shape(*sizes, (0.25, 0.5, 1.0)),
        "published": published(*sizes),
    }
    claims, found = [], {}
    for name, form in shapes.items():
        found[name] = likeness(nest(dense, images, nest=form), dense, test, (1.0, 0.8, 0.65, 0.5, 0.41))
        error = found[name][1.0].error
        claims.append(
            Claim(text=f"{name}: relative error at full budget", left=error, relation="<=", right=2e-5, exact=True)
        )
    for budget, token, patch in ((0.5, 0.988, 0.90), (0.41, 0.982, 0.88)):
        at = found["default"][budget]
        claims.append(Claim(text=f"class token cosine at {budget}", left=at.token, relation=">=", right=token))
        claims.append(Claim(text=f"patch cosine at {budget}", left=at.patch, relation=">=", right=patch))
    table = {name: {str(b): asdict(at) for b, at in row.items()} for name, row in found.items()}
    return claims, {"untrained": table}


def _run(
    dense: ViT,
    images: torch.Tensor,
    train: Pictures,
    test: Pictures,
    settings: Settings,
    seed: int,
    folder: Path | None,
) -> dict[str, Any]:
    out = None if folder is None else folder / f"seed{seed}"

    def tune(model: ViT, name: str, how: Fit, teacher: ViT | None = None) -> ViT:
        return fit(model, train, how, teacher=teacher, out=None if out is None else out / name)

    start = probe(with_head(dense, train.classes), train, l2=0.1)
    base = Fit(batch=settings.batch, seed=seed, precision="bf16", augment=Augment(flip=True), budgets=Fixed())
    again = replace(base, epochs=settings.epochs, rate=settings.rate, seed=seed + 100)
    first = tune(start, "dense", replace(base, epochs=settings.dense_epochs, rate=settings.dense_rate))
    longer = tune(first, "dense-longer", again)
    untuned = nest(first, images)
    tuned = tune(untuned, "nested", replace(again, budgets=Sampled()), teacher=first)
    networks: dict[str, Any] = {
        "dense": first,
        "dense, tuned as long": longer,
        "nested": tuned,
        "nested, untuned": untuned,
        "nested, random router": randomly_routed(tuned),
        "merging": Merged(first),
        "pruning": Pruned(first),
        "uniform width": Uniform(tuned),
    }
    return {name: _scores(network, test, settings.budgets) for name, network in networks.items()}


def _scores(network: Any, test: Pictures, budgets: tuple[float, ...]) -> dict[str, float]:
    """AUROC by budget, leaving out those that the network cannot reach; dense networks have the full one only."""
    found = {}
    for budget in budgets:
        try:
            logits, labels = predict(network, test, budget=budget, precision="bf16")
        except ValueError:
            continue
        found[str(budget)] = auroc(logits.softmax(-1)[:, 1], labels)
    return found


def _accuracy(runs: list[dict[str, Any]]) -> list[Claim]:
    if not runs:
        return []

    def mean(name: str, budget: str) -> float:
        return statistics.mean(run[name][budget] for run in runs)

    best = max(("dense", "dense, tuned as long"), key=lambda name: mean(name, "1.0"))
    loss = {budget: mean(best, "1.0") - mean("nested", budget) for budget in ("0.5", "0.35")}
    return [
        Claim(text="AUROC lost against dense at budget 0.5", left=loss["0.5"], relation="<=", right=0.002),
        Claim(text="AUROC lost against dense at budget 0.35", left=loss["0.35"], relation="<=", right=0.01),
        Claim(
            text="AUROC at 0.35, learned against random router",
            left=mean("nested", "0.35"),
            relation=">=",
            right=mean("nested, random router", "0.35"),
        ),
        Claim(
            text="AUROC at 0.5, nested against merging",
            left=mean("nested", "0.5"),
            relation=">=",
            right=mean("merging", "0.5"),
        ),
    ]
