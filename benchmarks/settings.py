"""What is measured: sizes of networks, cells (one race each), budgets, rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PRECISIONS = ("float32", "bfloat16")
WAYS = ("eager", "compiled")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A vision transformer's sizes; it has four hidden units a channel."""

    width: int
    depth: int
    heads: int

    @property
    def hidden(self) -> int:
        """Units of a feed-forward layer."""
        return 4 * self.width


SIZES = {
    "nano": Size(width=64, depth=2, heads=2),
    "Ti": Size(width=192, depth=12, heads=3),
    "S": Size(width=384, depth=12, heads=6),
    "B": Size(width=768, depth=12, heads=12),
}
# The size that is timed at every batch unless sizes are named; of the others the largest batch tells most.
REFERENCE = "S"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is alike for all that race against one another.

    Attributes:
        size: one of SIZES.
        side: of the pictures in pixels.
        batch: pictures a call.
        precision: `float32` or `bfloat16`; in training that of autocast.
        work: `predict` (logits), or of training `forward` (up to the loss) or `step` (forward and backward).
    """

    size: str
    batch: int
    precision: str
    side: int = 224
    work: str = "predict"

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"sizes must be among {', '.join(SIZES)}; got {self.size!r}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precisions must be among {', '.join(PRECISIONS)}; got {self.precision!r}.")
        if self.batch < 1:
            raise ValueError(f"batches must be whole numbers from 1 on; got {self.batch}. Try 1,16.")

    @property
    def title(self) -> str:
        """In words."""
        work = {"predict": "", "forward": ", training: forward", "step": ", training: forward and backward"}[self.work]
        return f"ViT-{self.size}, {self.side} px, batch {self.batch}, {self.precision}{work}"


def grid(sizes: Sequence[str], batches: Sequence[int], precisions: Sequence[str], side: int = 224) -> tuple[Cell, ...]:
    """Every size at every batch in every precision."""
    return tuple(Cell(size=s, batch=b, precision=p, side=side) for s in sizes for p in precisions for b in batches)


def usual(batches: Sequence[int] = (1, 16), precisions: Sequence[str] = PRECISIONS) -> tuple[Cell, ...]:
    """ViT-S everywhere, ViT-Ti and ViT-B at the largest batch only: about a quarter of an hour on two cores."""
    largest = [max(batches)] if batches else []
    return grid([REFERENCE], batches, precisions) + grid(["Ti", "B"], largest, precisions)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one run of the benchmarks measures.

    Attributes:
        cells: the races.
        training: the races of training, with `work` left to the benchmark.
        training_budget: of the nested network in training; its cost is linear in the budget, so that one stands for
            all budgets of this mean.
        budgets: of the nested networks and of token merging.
        compiled_budgets: at which the nested network is compiled too.
        ways: how networks run, `eager` or `compiled`.
        patch: side of a patch in pixels.
        classes: of the head.
        rounds: how often each candidate is timed, at most.
        seconds: after so long a race ends, but not before three rounds.
        cube: side of the square matrices that tell the machine's matmul rate beside those that occur.
        memory: bytes of the buffer that tells the memory rate; more than any cache holds.
        operators: how many operators a profile lists; 0 for no profile.

    Raises:
        ValueError: when there is nothing to measure, or one of these cannot be.
    """

    cells: tuple[Cell, ...] = usual()
    training: tuple[Cell, ...] = (Cell(size=REFERENCE, side=112, batch=32, precision="bfloat16"),)
    training_budget: float = 0.5
    budgets: tuple[float, ...] = (1.0, 0.7, 0.5, 0.3)
    compiled_budgets: tuple[float, ...] = (0.5,)
    ways: tuple[str, ...] = WAYS
    patch: int = 16
    classes: int = 1000
    rounds: int = 10
    seconds: float = 30.0
    cube: int = 2048
    memory: int = 512 << 20
    operators: int = 0

    def __post_init__(self) -> None:
        if not self.cells or not self.budgets:
            found = f"{len(self.cells)} and {len(self.budgets)}"
            raise ValueError(f"a benchmark needs at least one cell and one budget; got {found}.")
        if "eager" not in self.ways or not set(self.ways) <= set(WAYS):
            raise ValueError(f"ways must be eager, or eager and compiled; got {', '.join(self.ways) or 'none'}.")
        if not all(0 < budget <= 1 for budget in (*self.budgets, *self.compiled_budgets, self.training_budget)):
            raise ValueError(f"budgets must lie in (0, 1]; got {', '.join(f'{b:g}' for b in self.budgets)}.")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {self.rounds}.")
        for cell in (*self.cells, *self.training):
            if cell.side < 1 or cell.side % self.patch:
                raise ValueError(f"sides must be multiples of the patch, {self.patch}; got {cell.side}.")

    @classmethod
    def quick(cls) -> Settings:
        """A tiny network and nothing compiled, in seconds: numbers that show that all runs, and nothing else."""
        return cls(
            cells=grid(["nano"], [1], PRECISIONS, side=112),
            training=(Cell(size="nano", side=112, batch=2, precision="bfloat16"),),
            ways=WAYS[:1],
            rounds=3,
            seconds=2.0,
            cube=256,
            memory=8 << 20,
        )

    def patches(self, side: int) -> int:
        """How many patches a picture of this side has."""
        return (side // self.patch) ** 2
