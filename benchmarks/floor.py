"""The floor: what the machine's best matmul and memory rates would allow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from benchmarks.settings import INT8, SUBJECTS
from nestor.data.scan import watch
from nestor.measure.clock import race
from nestor.ops.int8 import Product, Reading, fitted

if TYPE_CHECKING:
    from benchmarks.record import Candidate
    from benchmarks.settings import Cell, Settings

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
# How much work there is to one forward pass: a backward pass multiplies twice as much.
PASSES = {"predict": 1, "step": 3}


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

    def floor_ms(self, cell: Cell, candidate: Candidate) -> float:
        """The least milliseconds of a batch: all multiplications at the best rate, or all weights read once."""
        compute = PASSES[cell.work] * 2 * candidate.macs * cell.batch / self.best(cell.precision)
        moved = BYTES[cell.precision] * candidate.weights / self.memory
        return 1e-6 * max(compute, moved)


def measure(settings: Settings) -> Rates:
    """Time the matmuls that occur in the cells, one large square one, and a copy of memory.

    Of each the lower quartile of the times counts: the machine did reach it.
    """
    occurring = [
        (cell.precision, cell.batch * rows, inputs, outputs)
        for cell in settings.cells
        for rows, inputs, outputs in SUBJECTS[cell.subject].shapes
    ]
    side = settings.cube
    cubes = [(cell.precision, side, side, side) for cell in settings.cells]
    wanted = list(dict.fromkeys((*occurring, *cubes)))
    rounds = min(7, settings.rounds)
    watched = watch(wanted, total=len(wanted), what="Measuring the machine's rates")
    matmuls = tuple(_matmul(*shape, rounds=rounds) for shape in watched)
    # Not zeros, whose pages may all be one.
    source = torch.ones(settings.memory // 4)
    target = torch.empty_like(source)
    copy = race({"copy": partial(target.copy_, source)}, rounds=rounds, warmup=1)["copy"]
    return Rates(matmuls=matmuls, memory=1e-6 * 2 * settings.memory / copy.low_ms)


def _matmul(precision: str, rows: int, inputs: int, outputs: int, *, rounds: int) -> Matmul:
    x, weight, bias = (torch.randn(*shape) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    if precision == INT8:
        product = Product(weight, bias, Reading(steps=fitted(x)))
        call = partial(product, product.taken(x), torch.float32)
    else:
        call = partial(F.linear, *(part.to(getattr(torch, precision)) for part in (x, weight, bias)))
    # Small ones are called often enough for the clock.
    times = max(1, 10**8 // (rows * inputs * outputs))

    def work() -> None:
        for _ in range(times):
            call()

    taken = race({"matmul": work}, rounds=rounds, warmup=1)["matmul"].low_ms / times
    return Matmul(
        precision=precision, rows=rows, inputs=inputs, outputs=outputs, gflops=2e-6 * rows * inputs * outputs / taken
    )
