"""Where a run is kept: its numbers in the history, its figure beside other runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.plot import draw
from nestor.store import write_text

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.record import Report


def keep(report: Report, history: Path, figures: Path) -> tuple[Path, Path]:
    """Write `history/MACHINE/DATE-SOURCES.json` and `figures/MACHINE/DATE-SOURCES.png`.

    Raises:
        OSError: when one cannot be written.
        ImportError: matplotlib is missing; the numbers are kept all the same.
    """
    numbers = history / report.place / f"{report.name}.json"
    write_text(numbers, report.to_json())
    figure = figures / report.place / f"{report.name}.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    draw(report).savefig(figure, dpi=150)
    return numbers, figure
