"""MoNE: Mixture of Nested Experts, on a pretrained network and real solar cells.

Paper: arXiv 2407.19985. Command: `nestor prove mone`.

A dense DINOv2 ViT-S/14 is fine-tuned on the ELPV solar cells; a nested copy is made of it and taught by it over
sampled budgets, and so is token merging; the dense network is tuned on for as many epochs. All are scored on held-out
cells at several budgets, at equal multiply-accumulates and at equal milliseconds. Rates and epochs were chosen on a
part of the training cells. What nesting keeps without any training is `mone_pretrained`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from nestor.measure.by_budget import averages, gathered, joined, numbered, over_budgets
from nestor.measure.frontier import milliseconds
from nestor.measure.likeness import likeness
from nestor.models.merged import Merged
from nestor.models.pruned import Pruned
from nestor.models.saved import load_model
from nestor.models.uniform import Uniform, randomly_routed
from nestor.recipes.base import Claim, Proof, in_time
from nestor.surgery.nest import nest
from nestor.surgery.start import folded
from nestor.training.folder import keeping
from nestor.training.parallel import side_by_side
from nestor.training.schedule import Fixed
from nestor.training.scored import aurocs
from nestor.training.tuning import Tuning, Variant, tune, tune_dense

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.measure.repeats import Repeats
    from nestor.models.vit import ViT

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "Experts are prefixes of the same weights; a router gives each token one of them; their capacities are a dial."

DENSE, LONGER, MERGING = "dense", "dense, tuned as long", "merging, tuned"
VARIANTS = {
    "nested": Variant(start=nest),
    MERGING: Variant(start=lambda dense, images: Merged(dense)),
    LONGER: Variant(start=lambda dense, images: dense, how=partial(replace, budgets=Fixed()), taught=False),
}
FOLDERS = {"nested": "nested", MERGING: "merging-tuned", LONGER: "longer"}


@dataclass(frozen=True, kw_only=True)
class Settings(Tuning):
    """How the proof is run, beside what `Tuning` says; `rounds` is how often each network is timed."""

    size: int = 112
    dense_epochs: int = 5
    epochs: int = 4
    budgets: tuple[float, ...] = (1.0, 0.65, 0.5, 0.33, 0.25)
    rounds: int = 15

    @classmethod
    def quick(cls) -> Settings:
        """No training, few pictures: the exact claims only."""
        return cls(size=56, seeds=(), cells=32, calibration=16, budgets=(1.0, 0.5))


def build(settings: Settings) -> ViT:
    """The nested network before any training."""
    return nest(folded("dinov2-small"), settings.images())


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """What holds exactly, then accuracy over seeds, then what it is worth on the clock."""
    claims = _exact(settings)
    if not settings.seeds:
        return Proof(claims=tuple(claims), details={"auroc": []})
    with keeping(folder) as kept:
        side_by_side(partial(_dense, settings, kept), settings.seeds, what="Tuning dense networks")
        pieces = list(product(settings.seeds, VARIANTS))
        auroc = joined(pieces, side_by_side(partial(_scored, settings, kept), pieces, what="Tuning elastic networks"))
        first = kept / f"seed{settings.seeds[0]}"
        timed = {"nested": load_model(first / "nested"), MERGING: Merged(load_model(first / FOLDERS[MERGING]))}
    took = milliseconds(timed, settings.budgets, size=settings.size, rounds=settings.rounds)
    return Proof(claims=(*claims, *_accuracy(auroc, took)), details={"auroc": auroc, "milliseconds": took})


def curves(details: dict[str, Any]) -> Repeats | None:
    """AUROC on held-out cells over budgets; None where no network was trained."""
    if not (runs := details["auroc"]):
        return None
    found = numbered(gathered(runs))
    return over_budgets(
        f"Defective solar cells, {len(runs)} seeds",
        "AUROC, held-out cells",
        {name: points for name, points in found.items() if not name.startswith("dense")},
        levels={name: points[1.0] for name, points in found.items() if name.startswith("dense")},
        least=min(min(values) for values in found["nested"].values()) - 0.03,
    )


def _exact(settings: Settings) -> list[Claim]:
    dense, network = folded("dinov2-small"), build(settings)
    at = likeness(network, dense, settings.parts()[1].limit(64), settings.budgets)
    over = max(row.spent - budget for budget, row in at.items())
    return [
        Claim(text="relative error at full budget", left=at[1.0].error, relation="<=", right=2e-5, exact=True),
        Claim(text="multiply-accumulates spent above the budget", left=over, relation="<=", right=1e-9, exact=True),
    ]


def _dense(settings: Settings, folder: Path, seed: int) -> None:
    """Tune the dense network of a seed and keep it."""
    tune_dense(folded("dinov2-small", settings.classes()), settings, seed, folder / f"seed{seed}" / DENSE)


def _scored(settings: Settings, folder: Path, piece: tuple[int, str]) -> dict[str, dict[str, float]]:
    """AUROC by budget of a tuned network and of what is made of it, or of the dense one, without more training."""
    seed, name = piece
    kept = folder / f"seed{seed}"
    tuned = tune(VARIANTS[name], load_model(kept / DENSE), settings, seed + 100, kept / FOLDERS[name])
    networks: dict[str, Any] = {name: tuned}
    dense = load_model(kept / DENSE)
    if name == LONGER:
        networks |= {DENSE: dense, "merging": Merged(dense), "pruning": Pruned(dense)}
    if name == "nested":
        networks["nested, untuned"] = nest(dense, settings.images())
        networks["nested, random router"] = randomly_routed(networks["nested"])
        networks["uniform width"] = Uniform(networks["nested"])
    cells = settings.parts()[1]
    return {name: aurocs(network, cells, settings.budgets, seed=seed) for name, network in networks.items()}


def _accuracy(auroc: list[dict[str, dict[str, float]]], took: dict[str, dict[str, dict[float, float]]]) -> list[Claim]:
    mean = averages(numbered(gathered(auroc)))
    nested, best, claims = mean["nested"], max(mean[DENSE][1.0], mean[LONGER][1.0]), []
    for budget, most in ((0.5, 0.002), (0.33, 0.002), (0.25, 0.01)):
        text = f"AUROC lost against dense at budget {budget}"
        claims.append(Claim(text=text, left=best - nested[budget], relation="<=", right=most))
    for name in ("nested, random router", "merging", MERGING, "pruning", "uniform width"):
        for budget in (b for b in mean[name] if b < 1):
            text = f"AUROC at {budget}, nested against {name.removeprefix('nested, ')}"
            claims.append(Claim(text=text, left=nested[budget], relation=">=", right=mean[name][budget]))
    return [*claims, *in_time("AUROC", nested, mean[MERGING], took, ("nested", MERGING))]
