"""A report as a figure: time against multiply-accumulates, both as shares of the best dense network's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.settings import WORKS
from nestor.measure.draw import COLOURS, GREY, legend_below, look
from nestor.measure.table import SHORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchmarks.record import Report, Row

COLUMNS = 4
DIALS = ("nested", "merged")


def draw(report: Report) -> Figure:
    """One panel a cell: on the diagonal nothing is lost, below it more is saved than was counted; bars for layers.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing needs matplotlib. Install it: pip install 'nestor[plot]'") from error
    cells = report.cells
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    # Narrower, the legend would not fit beside itself.
    figure = Figure(figsize=(max(7.0, 3.4 * columns), 3.4 * rows + 0.8), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    names = list(dict.fromkeys(row.name for row in report.rows if row.kind in DIALS))
    curves = [cell for cell in cells if any(row.kind in DIALS for row in report.rows if row.cell == cell)]
    for panel, cell in zip(axes, cells, strict=False):
        mine = [row for row in report.rows if row.cell == cell]
        if cell in curves:
            _panel(panel, mine, names, named=cell == curves[0])
        else:
            _bars(panel, mine)
        words = f"{cell.subject}\nbatch {cell.batch}, {SHORT.get(cell.precision, cell.precision)}{WORKS[cell.work]}"
        panel.set_title(words, loc="left", fontsize="small")
    for panel in axes[len(cells) :]:
        panel.set_axis_off()
    if curves:
        legend_below(figure, axes[cells.index(curves[0])])
    return figure


def _panel(axes: Axes, rows: Sequence[Row], names: Sequence[str], *, named: bool) -> None:
    axes.axline((0, 0), slope=1, color=GREY, linestyle="--", linewidth=1, label="nothing lost" if named else None)
    dense = [100 / row.speed_up for row in rows if row.kind == "dense"]
    axes.plot([100] * len(dense), dense, "_", color=GREY, markersize=9, label="dense networks" if named else None)
    for number, name in enumerate(names):
        # A network that is missing here still has its place in the legend.
        points = sorted((100 / row.reduction, 100 / row.speed_up) for row in rows if row.name == name)
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=name if named else None,
            **look(number),
        )
    axes.set_xlabel("multiply-accumulates, % of dense")
    axes.set_ylabel("time, % of the best dense")
    axes.set_xlim(0, 110)
    # A dense network that is several times slower would press all others together.
    ours = [100 / row.speed_up for row in rows if row.kind != "dense"]
    axes.set_ylim(0, 1.1 * max(110, *ours))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    """Time of layers without a dial."""
    colours = [GREY if row.kind == "dense" else COLOURS[row.kind == "rival"] for row in rows]
    times = [100 / row.speed_up for row in rows]
    axes.barh(range(len(rows)), times, color=colours, alpha=0.6)
    for place, row in enumerate(rows):
        # Inside, because names beside the panel would leave it no room.
        axes.text(0.02, place, row.name, va="center", fontsize="small", transform=axes.get_yaxis_transform())
    axes.axvline(100, color=GREY, linestyle="--", linewidth=1)
    axes.invert_yaxis()
    axes.set_yticks([])
    axes.set_xlabel("time, % of dense at equal work")
    axes.spines[["top", "right"]].set_visible(False)
