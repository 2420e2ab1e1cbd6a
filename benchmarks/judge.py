"""What times say: speed-ups over the best dense network, efficiencies, distances from the floor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.record import Row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.record import Candidate
    from benchmarks.settings import Cell
    from nestor.measure.clock import Timing


def judge(cell: Cell, timings: Mapping[Candidate, Timing], floors: Mapping[Candidate, float]) -> tuple[Row, ...]:
    """What the timings of one cell say; the best dense candidate is the denominator.

    Raises:
        ValueError: when no dense candidate was timed.
    """
    dense = {c.name: timing.median_ms for c, timing in timings.items() if c.kind == "dense"}
    if not dense:
        raise ValueError(f"a cell needs at least one dense candidate; {cell.title} has none.")
    best, whole = min(dense.values()), next(c.macs for c in timings if c.kind == "dense")
    rows = []
    for c, timing in timings.items():
        speed_up, reduction = best / timing.median_ms, whole / c.macs
        row = Row(
            cell=cell,
            name=c.name,
            kind=c.kind,
            budget=c.budget,
            macs=c.macs,
            reduction=reduction,
            timing=timing,
            speed_up=speed_up,
            efficiency=speed_up / reduction,
            against={name: ms / timing.median_ms for name, ms in dense.items()},
            floor_ms=floors[c],
            over_floor=timing.median_ms / floors[c],
        )
        rows.append(row)
    return tuple(rows)
