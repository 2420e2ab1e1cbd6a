"""MoNE: Mixture of Nested Experts, on a pretrained network and real solar cells.

Paper: arXiv 2407.19985. Command: `nestor prove mone`.

A dense DINOv2 ViT-S/14 is fine-tuned on the ELPV solar cells; a nested copy is made of it and taught by it over
sampled budgets, and so is token merging; the dense network is tuned on for as many epochs. All are scored on held-out
cells at several budgets, at equal multiply-accumulates and at equal milliseconds. Rates and epochs were chosen on a
part of the training cells. What nesting keeps without any training is `mone_pretrained`.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.data import Augment, load_splits
from nestor.measure.frontier import milliseconds
from nestor.measure.likeness import likeness
from nestor.measure.repeats import Repeats
from nestor.measure.score import auroc
from nestor.models.merged import Merged
from nestor.models.pretrained import read
from nestor.models.pruned import Pruned
from nestor.models.saved import load_model
from nestor.models.uniform import Uniform, randomly_routed
from nestor.recipes.base import Claim, Proof, in_time
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest, with_head
from nestor.training.fit import fit
from nestor.training.parallel import side_by_side
from nestor.training.predict import predict
from nestor.training.probe import probe
from nestor.training.schedule import Fixed, Sampled
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.data import Pictures
    from nestor.models.video import Network
    from nestor.models.vit import ViT

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "Experts are prefixes of the same weights; a router gives each token one of them; their capacities are a dial."


DENSE, LONGER, MERGING = "dense", "dense, tuned as long", "merging, tuned"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run.

    Attributes:
        size: of the cells, in pixels.
        seeds: of the trainings; none for no training.
        dense_epochs, dense_rate: of the dense network.
        epochs, rate: of everything that starts from it.
        batch: cells in a step.
        calibration: training cells that nested networks are fitted to in closed form.
        cells: of each part; None takes all.
        budgets: at which networks are scored.
        rounds: how often each network is timed.
    """

    size: int = 112
    seeds: tuple[int, ...] = (0, 1, 2)
    dense_epochs: int = 5
    dense_rate: float = 1e-3
    epochs: int = 4
    rate: float = 3e-4
    batch: int = 32
    calibration: int = 128
    cells: int | None = None
    budgets: tuple[float, ...] = (1.0, 0.65, 0.5, 0.33, 0.25)
    rounds: int = 15

    @classmethod
    def quick(cls) -> Settings:
        """No training, few pictures: the exact claims only."""
        return cls(size=56, seeds=(), cells=32, calibration=16, budgets=(1.0, 0.5))


def build(settings: Settings) -> ViT:
    """The nested network before any training."""
    return nest(fold(read("dinov2-small")), _calibration(_parts(settings)[0], settings))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """What holds exactly, then accuracy over seeds, then what it is worth on the clock."""
    claims = _exact(settings)
    if not settings.seeds:
        return Proof(claims=tuple(claims), details={"auroc": []})
    with tempfile.TemporaryDirectory() as passing:
        kept = Path(passing) if folder is None else folder
        side_by_side(partial(_dense, settings, kept), settings.seeds, what="Tuning dense networks")
        pieces = [(seed, name) for seed in settings.seeds for name in ("nested", MERGING, LONGER)]
        found = side_by_side(partial(_scored, settings, kept), pieces, what="Tuning elastic networks")
        first = kept / f"seed{settings.seeds[0]}"
        timed = {"nested": load_model(first / "nested"), MERGING: Merged(load_model(first / _folder(MERGING)))}
    runs: dict[int, dict[str, Any]] = {seed: {} for seed in settings.seeds}
    for (seed, _), scores in zip(pieces, found, strict=True):
        runs[seed] |= scores
    auroc = list(runs.values())
    took = milliseconds(timed, settings.budgets, size=settings.size, rounds=settings.rounds)
    return Proof(claims=(*claims, *_accuracy(auroc, took)), details={"auroc": auroc, "milliseconds": took})


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


@cache
def _parts(settings: Settings) -> tuple[Pictures, Pictures]:
    parts = load_splits("elpv", size=settings.size)
    train, test = (part if settings.cells is None else part.limit(settings.cells) for part in parts)
    return train.cached(), test.cached()


def _calibration(train: Pictures, settings: Settings) -> Tensor:
    return train.limit(settings.calibration).stacked()


def _exact(settings: Settings) -> list[Claim]:
    dense, network = fold(read("dinov2-small")), build(settings)
    at = likeness(network, dense, _parts(settings)[1].limit(64), settings.budgets)
    over = max(row.spent - budget for budget, row in at.items())
    return [
        Claim(text="relative error at full budget", left=at[1.0].error, relation="<=", right=2e-5, exact=True),
        Claim(text="multiply-accumulates spent above the budget", left=over, relation="<=", right=1e-9, exact=True),
    ]


def _how(settings: Settings, seed: int) -> Fit:
    return Fit(
        epochs=settings.epochs,
        rate=settings.rate,
        batch=settings.batch,
        seed=seed + 100,
        precision="bf16",
        augment=Augment(flip=True),
        budgets=Sampled(),
    )


def _dense(settings: Settings, folder: Path, seed: int) -> None:
    """Tune the dense network of a seed and keep it."""
    train, _ = _parts(settings)
    start = probe(with_head(fold(read("dinov2-small")), train.classes), train, l2=0.1)
    how = replace(_how(settings, seed), epochs=settings.dense_epochs, rate=settings.dense_rate, seed=seed)
    fit(start, train, replace(how, budgets=Fixed()), out=folder / f"seed{seed}" / DENSE)


def _tuned(settings: Settings, folder: Path, seed: int, name: str) -> Network:
    """A network of a seed after its training, which is done where `folder` does not hold its result."""
    train, _ = _parts(settings)
    out, how = folder / f"seed{seed}", _how(settings, seed)
    dense = load_model(out / DENSE)
    if name == LONGER:
        return fit(dense, train, replace(how, budgets=Fixed()), out=out / "longer")
    start = Merged(dense) if name == MERGING else nest(dense, _calibration(train, settings))
    return fit(start, train, how, teacher=dense, out=out / _folder(name))


def _folder(name: str) -> str:
    return name.replace(", ", "-")


def _scored(settings: Settings, folder: Path, piece: tuple[int, str]) -> dict[str, dict[str, float]]:
    """AUROC by budget of a tuned network and of what is made of it, or of the dense one, without more training."""
    seed, name = piece
    train, test = _parts(settings)
    networks: dict[str, Any] = {name: _tuned(settings, folder, seed, name)}
    dense = load_model(folder / f"seed{seed}" / DENSE)
    if name == LONGER:
        networks |= {DENSE: dense, "merging": Merged(dense), "pruning": Pruned(dense)}
    if name == "nested":
        networks["nested, untuned"] = nest(dense, _calibration(train, settings))
        networks["nested, random router"] = randomly_routed(networks[name])
        networks["uniform width"] = Uniform(networks[name])
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


def _accuracy(auroc: list[dict[str, Any]], took: dict[str, dict[str, dict[float, float]]]) -> list[Claim]:
    def mean(name: str) -> dict[float, float]:
        return {float(budget): statistics.mean(run[name][budget] for run in auroc) for budget in auroc[0][name]}

    nested, best, claims = mean("nested"), max(mean(DENSE)[1.0], mean(LONGER)[1.0]), []
    for budget, most in ((0.5, 0.002), (0.33, 0.002), (0.25, 0.01)):
        text = f"AUROC lost against dense at budget {budget}"
        claims.append(Claim(text=text, left=best - nested[budget], relation="<=", right=most))
    for name in ("nested, random router", "merging", MERGING, "pruning", "uniform width"):
        for budget, value in mean(name).items():
            if budget < 1:
                text = f"AUROC at {budget}, nested against {name.removeprefix('nested, ')}"
                claims.append(Claim(text=text, left=nested[budget], relation=">=", right=value))
    return [*claims, *in_time("AUROC", nested, mean(MERGING), took, ("nested", MERGING))]
