"""A dense network tuned on solar cells, and networks tuned from it in several ways, so that they can be compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from nestor.data import Augment
from nestor.data.kept import decoded
from nestor.training.fit import fit
from nestor.training.probe import probe
from nestor.training.schedule import Fixed
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from nestor.data import Pictures
    from nestor.models.video import Network
    from nestor.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What all networks of a comparison are tuned on and how; what has no default here each comparison chooses.

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

    size: int
    seeds: tuple[int, ...] = (0, 1, 2)
    dense_epochs: int
    dense_rate: float = 1e-3
    epochs: int
    rate: float = 3e-4
    batch: int = 32
    calibration: int = 128
    cells: int | None = None
    budgets: tuple[float, ...]

    def parts(self) -> tuple[Pictures, Pictures]:
        """Cells to learn from and to be judged by, decoded; loaded once in a process.

        Raises:
            ImportError: elpv_dataset is missing.
            ValueError: `cells` is below 1.
        """
        return decoded("elpv", self.size, self.cells)

    def classes(self) -> tuple[str, ...]:
        """What cells may be.

        Raises:
            ImportError, ValueError: as in `parts`.
        """
        return self.parts()[0].classes

    def images(self) -> Tensor:
        """(n, 3, size, size): the training cells that nested networks are fitted to, all kinds of cells alike.

        Raises:
            ImportError, ValueError: as in `parts`; or `calibration` is below 1.
        """
        return self.parts()[0].limit(self.calibration).stacked()

    def how(self, seed: int) -> Fit:
        """How everything that starts from the dense network is trained.

        Raises:
            ValueError: a number lies outside its range.
        """
        return Fit(
            epochs=self.epochs,
            rate=self.rate,
            batch=self.batch,
            seed=seed,
            precision="bf16",
            augment=Augment(flip=True),
        )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way from a dense network to a tuned one.

    Attributes:
        start: what is trained, made of the dense network and calibration pictures (n, 3, H, W).
        how: what it changes of how all are trained.
        taught: whether the dense network teaches.
    """

    start: Callable[[ViT, Tensor], Network]
    how: Callable[[Fit], Fit] = lambda how: how
    taught: bool = True


def tune_dense(model: ViT, tuning: Tuning, seed: int, out: Path) -> ViT:
    """Tune a dense network whose head starts as the best linear one, and keep it in a folder.

    Args:
        model: with a head for the classes of the cells.
        tuning: the comparison.
        seed: of this training.
        out: as in `fit`; a training that it holds complete is not done again.

    Raises:
        Exception: as in `probe` and `fit`.
    """
    train, _ = tuning.parts()
    how = replace(tuning.how(seed), epochs=tuning.dense_epochs, rate=tuning.dense_rate, budgets=Fixed())
    return fit(probe(model, train, l2=0.1), train, how, out=out)


def tune(variant: Variant, dense: ViT, tuning: Tuning, seed: int, out: Path) -> Network:
    """Go one way from a tuned dense network, and keep the result in a folder.

    Args:
        variant: the way.
        dense: is not changed.
        tuning: the comparison.
        seed: of this training.
        out: as in `fit`; a training that it holds complete is not done again.

    Raises:
        Exception: as in `fit`.
    """
    with torch.random.fork_rng():
        # Some routers start at random.
        torch.manual_seed(seed)
        start = variant.start(dense, tuning.images())
    how = variant.how(tuning.how(seed))
    return fit(start, tuning.parts()[0], how, teacher=dense if variant.taught else None, out=out)
