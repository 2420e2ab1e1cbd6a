"""From what stands on the command line to settings."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.settings import PRECISIONS, Settings, grid, usual
from nestor.cli import parse

BATCHES = (1, 16)
OPERATORS = 20


def choose(
    sizes: str | None = None,
    budgets: str | None = None,
    batches: str | None = None,
    precisions: str | None = None,
    rounds: int | None = None,
    *,
    quick: bool = False,
    profile: bool = False,
) -> Settings:
    """What to measure; None where nothing is said.

    Raises:
        ValueError: when something is not known or not possible.
    """
    base = Settings.quick() if quick else Settings()
    counts = (BATCHES[:1] if quick else BATCHES) if batches is None else parse.batches(batches)
    kinds = PRECISIONS if precisions is None else parse.precisions(precisions)
    side = base.cells[0].side
    if sizes is not None:
        cells = grid(sizes.split(","), counts, kinds, side)
    else:
        cells = grid(["nano"], counts, kinds, side) if quick else usual(counts, kinds)
    return replace(
        base,
        cells=cells,
        budgets=parse.budgets(budgets) or base.budgets,
        rounds=base.rounds if rounds is None else rounds,
        operators=OPERATORS if profile else 0,
    )
