"""MoNE: Mixture of Nested Experts, on a pretrained network and real solar cells.

Paper: arXiv 2407.19985. Command: `nestor prove mone`.

One dense DINOv2 ViT-S/14 is fine-tuned on the ELPV solar cells; a nested copy is made of it and tuned for as many
epochs again; the dense network is tuned on by the same recipe for as many. Both are scored on held-out cells, the
nested one at several budgets, beside rivals of equal multiply-accumulates.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nestor.data import Augment, load_splits
from nestor.measure.score import auroc
from nestor.models.merged import Merged
from nestor.models.pretrained import read
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
    epochs: int = 1
    rate: float = 2e-6
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


def _calibration(train: Pictures, settings: Settings) -> torch.Tensor:
    few = train.limit(settings.calibration)
    return torch.stack([few[i][0] for i in range(len(few))])


def _untrained(dense: ViT, images: torch.Tensor, test: Pictures) -> tuple[list[Claim], dict[str, Any]]:
    sizes = (dense.settings.nest.widths[0], dense.settings.nest.hidden[0], dense.settings.nest.heads[0])
    shapes: dict[str, Nest] = {
        "default": shape(*sizes),
        "three widths": shape(*sizes, (0.25, 0.5, 1.0)),
        "published": published(*sizes),
    }
    claims, table = [], {}
    for name, form in shapes.items():
        table[name] = likeness(nest(dense, images, nest=form), dense, test, (1.0, 0.8, 0.65, 0.5, 0.41))
        full = table[name]["1.0"]
        claims.append(
            Claim(text=f"{name}: relative error at full budget", left=full[2], relation="<=", right=2e-5, exact=True)
        )
    for budget, token, patches in (("0.5", 0.988, 0.90), ("0.41", 0.982, 0.88)):
        found = table["default"][budget]
        claims.append(Claim(text=f"class token cosine at {budget}", left=found[0], relation=">=", right=token))
        claims.append(Claim(text=f"patch cosine at {budget}", left=found[1], relation=">=", right=patches))
    return claims, {"untrained [class cosine, patch cosine, relative error, spent]": table}


@torch.no_grad()
def likeness(model: ViT, dense: ViT, test: Pictures, budgets: tuple[float, ...]) -> dict[str, list[float]]:
    """For each budget: mean cosine of class token and of patches, relative error, and the share of MACs spent."""
    sums = {budget: torch.zeros(4, dtype=torch.float64) for budget in budgets}
    prefix, spent = dense.settings.prefix, {}
    for start in range(0, len(test), 64):
        images = torch.stack([test[i][0] for i in range(start, min(start + 64, len(test)))])
        wanted = dense(images).tokens
        for budget in budgets:
            output = model(images, budget=budget)
            cosine = torch.cosine_similarity(output.tokens, wanted, -1)
            error, size = (output.tokens - wanted).square().sum(), wanted.square().sum()
            parts = [cosine[:, 0].sum(), cosine[:, prefix:].mean(1).sum(), error, size]
            sums[budget] += torch.stack(parts).double()
            counts = model.plan(wanted.shape[1] - prefix, budget)
            spent[budget] = model.macs(counts) / model.full_macs(sum(counts))
    return {str(b): [*(s[:2] / len(test)).tolist(), (s[2] / s[3]).sqrt().item(), spent[b]] for b, s in sums.items()}


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

    def tune(model: ViT, name: str, budgets: Fixed | Sampled, seed: int, teacher: ViT | None = None) -> ViT:
        how = Fit(
            epochs=settings.epochs,
            batch=settings.batch,
            rate=settings.rate,
            seed=seed,
            precision="bf16",
            augment=Augment(flip=True),
            budgets=budgets,
        )
        return fit(model, train, how, teacher=teacher, out=None if out is None else out / name)

    start = probe(with_head(dense, train.classes), train, l2=0.1)
    first = tune(start, "dense", Fixed(), seed)
    longer = tune(first, "dense-longer", Fixed(), seed + 100)
    untuned = nest(first, images)
    tuned = tune(untuned, "nested", Sampled(), seed + 100, teacher=first)
    networks: dict[str, Any] = {
        "dense": first,
        "dense, tuned as long": longer,
        "nested": tuned,
        "nested, untuned": untuned,
        "nested, random router": randomly_routed(tuned),
        "merging": Merged(first),
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
