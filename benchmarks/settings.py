"""What is measured: subjects, cells (one race each), budgets, rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PRECISIONS = ("float32", "bfloat16")
INT8 = "int8"
BATCHES = (1, 16)
WORKS = {"predict": "", "step": ", forward and backward"}


@dataclass(frozen=True, kw_only=True)
class Vision:
    """A vision transformer with four hidden units a channel; `scaled` ones have LayerScale, as DINOv2."""

    width: int
    depth: int = 12
    heads: int
    patch: int = 16
    side: int = 224
    classes: int = 1000
    scaled: bool = False

    @property
    def patches(self) -> int:
        """Of one picture."""
        return (self.side // self.patch) ** 2

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Rows of one picture, inputs and outputs of projections: dense ones, and a quarter for half of the rows."""
        T, D, H = self.patches + 1, self.width, 4 * self.width
        narrow = [(T // 2, D // 4, 3 * D), (T // 2, H // 4, D // 4)]
        return ((T, D, 3 * D), (T, D, D), (T, D, H), (T, H, D), *narrow)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A mixture of `experts` SwiGLU networks, `chosen` of which serve each token."""

    width: int
    hidden: int
    experts: int = 64
    chosen: int = 2
    tokens: int = 4096

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Rows, inputs and outputs: of the dense layer of equal work, and of one expert with an even share."""
        D, H, even = self.width, self.hidden, self.tokens * self.chosen // self.experts
        dense = [(self.tokens, D, 2 * self.chosen * H), (self.tokens, self.chosen * H, D)]
        return (*dense, (even, D, 2 * H), (even, H, D))


SUBJECTS: dict[str, Vision | Layer] = {
    "ViT-nano": Vision(width=64, depth=2, heads=2, side=64, classes=10),
    "ViT-Ti/16": Vision(width=192, heads=3),
    "ViT-S/16": Vision(width=384, heads=6),
    "DINOv2-S/14": Vision(width=384, heads=6, patch=14, scaled=True),
    "ViT-B/16": Vision(width=768, heads=12),
    "mixture-nano": Layer(width=32, hidden=32, experts=8, tokens=64),
    "mixture-384": Layer(width=384, hidden=1024),
    "mixture-768": Layer(width=768, hidden=2048),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is alike for all that race against one another.

    Attributes:
        subject: one of SUBJECTS.
        precision: `float32` or `bfloat16`; of autocast if work is `step`.
        batch: pictures, or sets of tokens, a call.
        work: `predict` (the answer) or `step` (forward and backward, without an optimiser).

    Raises:
        ValueError: when one is not known.
    """

    subject: str
    precision: str
    batch: int = 1
    work: str = "predict"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("subjects", self.subject, SUBJECTS),
            ("precisions", self.precision, (*PRECISIONS, INT8)),
            ("works", self.work, WORKS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be among {', '.join(known)}; got {value!r}.")
        if self.precision == INT8 and (self.work == "step" or isinstance(SUBJECTS[self.subject], Layer)):
            raise ValueError(f"vision transformers predict in eight bits; got {self.subject}{WORKS[self.work]}.")
        if self.batch < 1:
            raise ValueError(f"batches must be whole numbers from 1 on; got {self.batch}. Try 1,16.")

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.subject}, batch {self.batch}, {self.precision}{WORKS[self.work]}"


def grid(
    subjects: Sequence[str], batches: Sequence[int] = BATCHES, precisions: Sequence[str] = PRECISIONS
) -> tuple[Cell, ...]:
    """Every vision transformer at every batch in every precision; layers have one batch, and are timed backward too.

    Raises:
        ValueError: when one is not known.
    """
    cells = []
    for subject in subjects:
        alone = isinstance(SUBJECTS.get(subject), Layer)
        cells += [
            Cell(subject=subject, precision=precision, batch=batch, work=work)
            for precision in precisions
            if not (alone and precision == INT8)
            for work in (WORKS if alone else ("predict",))
            for batch in ((1,) if alone else batches)
        ]
    return tuple(cells)


# A step of training, which sparsity is to make cheaper too.
STEPS = tuple(Cell(subject="ViT-S/16", precision=precision, batch=16, work="step") for precision in PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one run of the benchmarks measures.

    Attributes:
        cells: the races.
        budgets: of the elastic networks.
        elastic: which of them run: `nested` (the default shape), `unmerged` (that without merging on the way),
            `published` (its shape), `merged` (token merging alone).
        compiled: who runs compiled too, of `ours`, `timm`, `transformers` and `nested`.
        compiled_budgets: at which the nested network is compiled.
        rounds: how often each candidate is timed, at most.
        seconds: after so long a race ends, but not before five rounds.
        cube: side of the square matrices that tell the machine's matmul rate beside those that occur.
        memory: bytes of the buffer that tells the memory rate; more than any cache holds.
        operators: how many operators a profile lists; 0 for no profile.

    Raises:
        ValueError: when there is nothing to measure, or one of these cannot be.
    """

    cells: tuple[Cell, ...] = (
        *grid(["ViT-S/16"], precisions=(*PRECISIONS, INT8)),
        *STEPS,
        *grid(["mixture-384", "DINOv2-S/14"]),
    )
    budgets: tuple[float, ...] = (1.0, 0.7, 0.5, 0.3)
    elastic: tuple[str, ...] = ("nested", "merged")
    compiled: tuple[str, ...] = ("ours", "nested")
    compiled_budgets: tuple[float, ...] = (0.5,)
    rounds: int = 20
    seconds: float = 20.0
    cube: int = 2048
    memory: int = 512 << 20
    operators: int = 0

    def __post_init__(self) -> None:
        if not self.cells or not self.budgets:
            found = f"{len(self.cells)} and {len(self.budgets)}"
            raise ValueError(f"a benchmark needs at least one cell and one budget; got {found}.")
        if not all(0 < budget <= 1 for budget in (*self.budgets, *self.compiled_budgets)):
            raise ValueError(f"budgets must lie in (0, 1]; got {', '.join(f'{b:g}' for b in self.budgets)}.")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {self.rounds}.")

    @classmethod
    def whole(cls) -> Settings:
        """Every subject, shape and compiled network, and steps of training: for hours without anybody at work."""
        subjects = [name for name in SUBJECTS if not name.endswith("nano")]
        return cls(
            cells=(*grid(subjects, precisions=(*PRECISIONS, INT8)), *STEPS),
            elastic=("nested", "unmerged", "published", "merged"),
            compiled=("ours", "timm", "transformers", "nested"),
        )

    @classmethod
    def quick(cls) -> Settings:
        """Tiny networks and nothing compiled, in seconds: numbers that show that all runs, and nothing else."""
        cells = grid(["ViT-nano", "mixture-nano"], [1], (*PRECISIONS, INT8))
        return cls(cells=cells, compiled=(), rounds=3, seconds=2.0, cube=256, memory=8 << 20)
