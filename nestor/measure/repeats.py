"""Curves of what several runs found: the mean of each point, and how far the runs lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from nestor.measure.draw import GREY, legend_below, look, panels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """What several runs found of several things.

    Attributes:
        title: what is shown.
        across: what lies on the horizontal axis.
        upward: what lies on the vertical axis.
        lines: for each name, by place on the horizontal axis, one value a run.
        levels: for each name, one value a run of what has no place: drawn as a level line.
        least: the vertical axis starts here at the lowest, lest a rival that falls apart hide the rest.
    """

    title: str
    across: str
    upward: str
    lines: Mapping[str, Mapping[float, Sequence[float]]]
    levels: Mapping[str, Sequence[float]]
    least: float | None = None


def draw_repeats(*found: Repeats) -> Figure:
    """Draw means as lines and the range of the runs as bands around them; several side by side, of the same things.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axes = panels(len(found))
    for each, axis in zip(found, axes, strict=True):
        _draw(axis, each)
    legend_below(figure, axes[0])
    return figure


def _draw(axes: Axes, found: Repeats) -> None:
    for number, (name, values) in enumerate(found.levels.items()):
        style = ("--", ":", "-.")[number % 3]
        axes.axhline(mean(values), color=GREY, linestyle=style, linewidth=1.2, label=name, zorder=1)
        axes.axhspan(min(values), max(values), color=GREY, alpha=0.08, linewidth=0, zorder=0)
    for number, (name, points) in enumerate(found.lines.items()):
        drawn, places = look(number), sorted(points)
        means = [mean(points[place]) for place in places]
        axes.plot(places, means, label=name, **drawn)
        low, high = ([pick(points[place]) for place in places] for pick in (min, max))
        if len(places) > 1:
            axes.fill_between(places, low, high, color=drawn["color"], alpha=0.12, linewidth=0, zorder=2)
        else:
            # An area over one place has no width.
            axes.vlines(places, low, high, color=drawn["color"], alpha=0.35, linewidth=4, zorder=2)
    if found.least is not None and axes.get_ylim()[0] < found.least:
        axes.set_ylim(bottom=found.least)
        place = {"x": 0.99, "y": 0.02, "transform": axes.transAxes}
        axes.text(s="points further down: see the table", ha="right", fontsize="small", color=GREY, **place)
    axes.set_title(found.title, loc="left")
    axes.set_xlabel(found.across)
    axes.set_ylabel(found.upward)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
