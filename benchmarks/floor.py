"""The floor: what the machine's best matmul and memory rates would allow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from benchmarks.settings import SIZES
from nestor.data.scan import watch
from nestor.measure.clock import race

if TYPE_CHECKING:
    from benchmarks.settings import Cell, Settings

BYTES = {"float32": 4, "bfloat16": 2}
# How much work there is to one forward pass: a backward pass multiplies twice as much.
PASSES = {"predict": 1, "forward": 1, "step": 3}


@dataclass(frozen=True, kw_only=True)
class Matmul:
    """How fast (rows, inputs) x (inputs, outputs) with a bias runs: 10^9 floating point operations a second."""

    precision: str
    rows: int
    inputs: int
    outputs: int
    gflops: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the machine can do; `memory` in 10^9 bytes a second, read and written together."""

    matmuls: tuple[Matmul, ...]
    memory: float

    def best(self, precision: str) -> float:
        """The fastest matmul, 10^9 floating point operations a second."""
        return max(m.gflops for m in self.matmuls if m.precision == precision)

    def floor_ms(self, cell: Cell, macs: int, weights: int) -> float:
        """The least milliseconds of a cell's work: all multiplications at the best rate, or all weights read once.

        Full-width tokens read all of a dense network's weights at any budget.

        Args:
            cell: batch and precision.
            macs: of one picture.
            weights: how many the dense network has.
        """
        compute = PASSES[cell.work] * 2 * macs * cell.batch / self.best(cell.precision)
        moved = BYTES[cell.precision] * (weights + 3 * cell.side**2 * cell.batch) / self.memory
        return 1e-6 * max(compute, moved)


def measure(settings: Settings) -> Rates:
    """Time the matmuls that occur in the cells, one large square one, and a copy of memory.

    Of each the lower quartile of the times counts: the machine did reach it.
    """
    wanted = list(
        dict.fromkeys(shape for cell in (*settings.cells, *settings.training) for shape in _shapes(cell, settings))
    )
    rounds = min(7, settings.rounds)
    watched = watch(wanted, total=len(wanted), what="Measuring the machine's rates")
    matmuls = tuple(_matmul(*shape, rounds=rounds) for shape in watched)
    source = torch.zeros(settings.memory // 4)
    target = torch.empty_like(source)
    copy = race({"copy": partial(target.copy_, source)}, rounds=rounds, warmup=1)["copy"]
    return Rates(matmuls=matmuls, memory=1e-6 * 2 * settings.memory / copy.low_ms)


def _matmul(precision: str, rows: int, inputs: int, outputs: int, *, rounds: int) -> Matmul:
    kind = getattr(torch, precision)
    x, weight, bias = (torch.randn(*shape).to(kind) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    # Small ones are called often enough for the clock.
    times = max(1, 10**8 // (rows * inputs * outputs))

    def work() -> None:
        for _ in range(times):
            F.linear(x, weight, bias)

    taken = race({"matmul": work}, rounds=rounds, warmup=1)["matmul"].low_ms / times
    return Matmul(
        precision=precision, rows=rows, inputs=inputs, outputs=outputs, gflops=2e-6 * rows * inputs * outputs / taken
    )


def _shapes(cell: Cell, settings: Settings) -> list[tuple[str, int, int, int]]:
    """Precision, rows, inputs and outputs of a block's projections: dense, and a narrow quarter for half the tokens."""
    size, tokens = SIZES[cell.size], settings.patches(cell.side) + 1
    D, H, rows = size.width, size.hidden, cell.batch * tokens
    full = [(rows, D, 3 * D), (rows, D, D), (rows, D, H), (rows, H, D)]
    narrow = [
        (rows // 2, D // 4, 3 * D),
        (rows // 2, D, D // 4),
        (rows // 2, D // 4, H // 4),
        (rows // 2, H // 4, D // 4),
    ]
    cube = (settings.cube, settings.cube, settings.cube)
    return [(cell.precision, *shape) for shape in (*full, *narrow, cube)]
