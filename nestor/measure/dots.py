"""One row for each of several networks: a dot for every run and a line at their mean."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from nestor.measure.draw import COLOURS, GREY, panels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Dots:
    """What several runs found of several networks.

    Attributes:
        title: what is shown.
        across: what lies on the horizontal axis.
        rows: for each network, one value a run; the first stands out, at the top.

    Raises:
        ValueError: there is no row, or one without a run.
    """

    title: str
    across: str
    rows: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        empty = [name for name, values in self.rows.items() if not values]
        if not self.rows or empty:
            raise ValueError(f"every network needs a run; got {len(self.rows)} networks, {empty} without. Run them.")


def draw_dots(*found: Dots) -> Figure:
    """Draw them side by side; each row says its mean.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axes = panels(len(found), height=1.4 + 0.32 * max(len(each.rows) for each in found))
    for each, axis in zip(found, axes, strict=True):
        _draw(axis, each)
    return figure


def _draw(axes: Axes, found: Dots) -> None:
    for place, values in enumerate(found.rows.values()):
        colour, middle = COLOURS[0] if place == 0 else COLOURS[1], mean(values)
        axes.plot([min(values), max(values)], [place, place], color=colour, alpha=0.3, linewidth=5, zorder=2)
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=5, alpha=0.8, zorder=3)
        axes.plot([middle, middle], [place - 0.28, place + 0.28], color=colour, linewidth=2, zorder=4)
        axes.annotate(
            f"{middle:#.3g}",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=GREY,
            fontsize="small",
        )
    axes.set_yticks(range(len(found.rows)), list(found.rows))
    axes.set_ylim(len(found.rows) - 0.4, -0.6)
    axes.set_title(found.title, loc="left")
    axes.set_xlabel(f"{found.across}\na dot for each run, a line at the mean")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
