"""Figures of traffic: loads over layers, experts by class, and what one layer's choice tells of another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.measure.draw import COLOURS, GREY, panel
from nestor.measure.traffic import normalised_information

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from nestor.measure.traffic import Traffic

_NUMBERS = 140
"""Up to so many cells bear their number."""


def draw_loads(layers: Sequence[Traffic], names: Sequence[str] = ()) -> Figure:
    """Draw every expert's load over its even share, one column a layer; dead experts are named below.

    Args:
        layers: the traffic of each.
        names: of the layers; numbers unless given.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: when there is no layer, or not one name for each.
    """
    if not layers or len(names or layers) != len(layers):
        raise ValueError(f"loads need a layer, and a name for each or none; got {len(layers)} and {len(names)}.")
    figure, axes = panel()
    for place, layer in enumerate(layers):
        relative = (layer.load * len(layer.load)).sort().values
        axes.vlines(place, float(relative[0]), float(relative[-1]), color=COLOURS[0], alpha=0.25, linewidth=6)
        axes.scatter([place] * len(relative), relative.tolist(), color=COLOURS[0], s=18, zorder=3)
        dead = (relative == 0).sum().item()
        if dead:
            axes.annotate(f"{dead} idle", (place, 0), (0, -9), textcoords="offset points", ha="center", va="top",
                          fontsize="x-small", color=COLOURS[1])  # fmt: skip
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1.2)
    axes.set_xticks(range(len(layers)), names or [str(place) for place in range(len(layers))])
    axes.margins(y=0.12)
    axes.set_title("Load of each expert", loc="left")
    axes.set_xlabel("layer")
    axes.set_ylabel("share of the tokens over an even share")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_classes(table: Tensor, classes: Sequence[str], title: str = "Experts by class") -> Figure:
    """Draw which expert serves which class: one row a class, each adding up to 1; the title tells the information.

    Args:
        table: (classes, E), from `traffic.by_class`.
        classes: their names.
        title: stands above.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: when there is not one name for each class.
    """
    if len(classes) != len(table):
        raise ValueError(f"every class needs a name; got {len(classes)} for {len(table)} classes.")
    figure, axes = panel()
    rows = table.float() / table.float().sum(1, keepdim=True).clamp_min(1e-20)
    _heat(axes, rows)
    axes.set_yticks(range(len(classes)), list(classes))
    axes.set_xlabel("expert")
    axes.set_title(f"{title}: normalised information {normalised_information(table):.2f}", loc="left")
    return figure


def draw_overlap(matrix: Tensor, names: Sequence[str] = ()) -> Figure:
    """Draw what each layer's choice tells of each other's, from `traffic.overlap` (L, L).

    Raises:
        ImportError: matplotlib is missing.
        ValueError: when the matrix is not square.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"an overlap is a square of layers; got {tuple(matrix.shape)}.")
    figure, axes = panel()
    _heat(axes, matrix)
    shown = list(names) or [str(place) for place in range(len(matrix))]
    axes.set_yticks(range(len(matrix)), shown)
    axes.set_xticks(range(len(matrix)), shown)
    axes.set_xlabel("layer")
    axes.set_ylabel("layer")
    axes.set_title("What one layer's choice tells of another's", loc="left")
    return figure


def _heat(axes: Axes, values: Tensor) -> None:
    axes.imshow(values.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if values.numel() > _NUMBERS:
        return
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            colour = "white" if value < 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=colour)
