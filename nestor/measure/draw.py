"""Figures: what a budget costs and gives, and which patch got which width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nestor.data import load
from nestor.measure.table import SHORT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from nestor.measure.record import Network, Point, Profile
    from nestor.models.vit import ViT

# Okabe and Ito's colours, told apart with every kind of colour vision; markers tell lines apart without any.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#7f7f7f"
TINT = 0.5


def curve(profile: Profile) -> Figure:
    """Quality against multiply-accumulates and, where it was timed, against latency, side by side.

    Raises:
        ImportError: matplotlib is missing.
    """
    timed = bool(profile.settings_timed)
    figure = _figure(10.5 if timed else 5.6, 4.6)
    axes = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    draw_macs(axes[0], profile)
    if timed:
        draw_latency(axes[1], profile)
    legend_below(figure, axes[0])
    return figure


def draw_macs(axes: Axes, profile: Profile) -> None:
    """Draw quality against the share of the dense network's multiply-accumulates."""
    _lines(axes, profile, lambda point: 100 * point.ratio)
    axes.set_title(f"{_capital(profile.measure)} against compute", loc="left")
    axes.set_xlabel("multiply-accumulates, % of dense")


def draw_latency(axes: Axes, profile: Profile, batch: int | None = None, precision: str | None = None) -> None:
    """Draw quality against measured milliseconds of a picture, at the largest batch and first precision if not told.

    Raises:
        ValueError: when nothing was timed at this batch and precision.
    """
    timed, usual = profile.settings_timed, curve_timing(profile)
    batch = usual[0] if batch is None else batch
    precision = usual[1] if precision is None else precision
    if (batch, precision) not in timed:
        known = ", ".join(f"batch {b} {p}" for b, p in timed) or "nothing"
        raise ValueError(f"the profile must have been timed at batch {batch} {precision}; got {known}. Time it there.")
    _lines(axes, profile, lambda point: _milliseconds(point, batch, precision) / batch)
    axes.set_title(f"{_capital(profile.measure)} against measured time", loc="left")
    axes.set_xlabel(f"milliseconds a picture (batch {batch}, {SHORT[precision]})")


def curve_timing(profile: Profile) -> tuple[int, str]:
    """The batch and precision that stand for all in curves and headlines: the largest batch, the first precision."""
    timed = profile.settings_timed
    return max((batch for batch, _ in timed), default=0), next((precision for _, precision in timed), "")


def look(number: int) -> dict[str, Any]:
    """How the line of this number is drawn: the first stands out, and colours come round again dashed."""
    first, again = number == 0, number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + again) % len(MARKERS)],
        "linestyle": ("-", "--")[again % 2],
        "linewidth": 2.4 if first else 1.5,
        "markersize": 6 if first else 5,
        "zorder": 4 if first else 3,
    }


def panel() -> tuple[Figure, Axes]:
    """One empty panel to draw into.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, (axes,) = panels(1)
    return figure, axes


def panels(count: int, *, height: float = 4.6) -> tuple[Figure, list[Axes]]:
    """Empty panels to draw into, side by side, so many inches high.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = _figure(5.6 if count == 1 else 5.25 * count, height)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend of these axes under the figure, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    # Inches that a handle and the longest name take.
    wide = 0.7 + 0.09 * max(map(len, names))
    columns = max(1, min(len(names), int(figure.get_figwidth() / wide)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)


def routing(
    axes: Axes, picture: Tensor, index: Tensor, grid: tuple[int, int], widths: Sequence[int], *, tint: float = TINT
) -> None:
    """Draw a picture with each patch tinted by the width it got, narrow ones dark and wide ones bright.

    Args:
        axes: where to.
        picture: uint8 (3, H, W).
        index: (N,), the expert of each patch, row by row.
        grid: rows and columns of the patches.
        widths: of the experts.
        tint: how much of the colour there is, in [0, 1].

    Raises:
        ValueError: when the patches do not fill the grid.
    """
    rows, columns = grid
    if index.numel() != rows * columns:
        raise ValueError(f"index must name an expert for each of {rows} x {columns} patches; got {index.numel()}.")
    pixels = picture.permute(1, 2, 0).numpy() / 255
    grey = pixels.mean(-1, keepdims=True)
    colours = np.asarray(palette(len(widths)))[index.reshape(grid).numpy()]
    patch = (pixels.shape[0] // rows, pixels.shape[1] // columns)
    colours = colours.repeat(patch[0], 0).repeat(patch[1], 1)
    axes.imshow((1 - tint) * grey + tint * colours, interpolation="nearest")
    _bare(axes)


def routings(
    model: ViT, picture: str | Path | Tensor, budgets: Sequence[float], *, size: int | None = None, title: str = ""
) -> Figure:
    """Draw which patch of a picture got which width, for several budgets beside the picture itself.

    Args:
        model: a nested network.
        picture: a file, or pixels as uint8 (3, H, W) whose sides the patches divide.
        budgets: one panel each.
        size: side in pixels at which a file is read; the network's own when None.
        title: stands above.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: when the network has one expert only, or a budget cannot be met.
        FileNotFoundError: there is no such file.
    """
    settings = model.settings
    if model.router is None:
        raise ValueError("a routing needs at least 2 experts; got a network with 1. Nest it first.")
    if not isinstance(picture, torch.Tensor):
        picture = load(picture, size=size or settings.nominal).pixels(0)
    grid = model.embed.cells(picture.unsqueeze(0).shape)
    N = grid[0] * grid[1]
    figure = _figure(2.2 * (len(budgets) + 1), 3.0 * max(1.0, grid[0] / grid[1]))
    axes = figure.subplots(1, len(budgets) + 1, squeeze=False)[0]
    axes[0].imshow(picture.permute(1, 2, 0).numpy())
    axes[0].set_title("picture")
    axes[0].set_xlabel(f"{picture.shape[2]} x {picture.shape[1]} px")
    _bare(axes[0])
    for panel, budget in zip(axes[1:], budgets, strict=True):
        index = choices(model, picture, budget)
        routing(panel, picture, index, grid, settings.nest.widths)
        panel.set_title(f"budget {budget:g}")
        panel.set_xlabel(f"{100 * model.macs(model.plan(N, budget)) / model.full_macs(N):.1f}% of MACs")
    _legend_of_widths(figure, settings.nest.widths)
    if title:
        figure.suptitle(title, fontweight="bold")
    return figure


def sheet(columns: Sequence[str], rows: Sequence[Sequence[Tensor]]) -> Figure:
    """Pictures in rows under the columns' names.

    Args:
        columns: their names.
        rows: a picture for each column: pixels, uint8 (3, H, W), or a map (H, W) of values in [0, 1].

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = _figure(1.7 * len(columns), 1.75 * len(rows) + 0.25)
    for row, panels in zip(rows, figure.subplots(len(rows), len(columns), squeeze=False), strict=True):
        for picture, panel in zip(row, panels, strict=True):
            if picture.ndim == 3:
                panel.imshow(picture.permute(1, 2, 0).numpy())
            else:
                panel.imshow(picture.float().numpy(), cmap="magma", vmin=0, vmax=1)
            _bare(panel)
    for name, panel in zip(columns, figure.axes, strict=False):
        panel.set_title(name, fontsize="medium")
    return figure


@torch.inference_mode()
def choices(model: ViT, picture: Tensor, budget: float) -> Tensor:
    """The expert of each patch (N,) of a picture, uint8 (3, H, W), row by row.

    Raises:
        ValueError: when the budget cannot be met or the patches do not divide the picture.
    """
    settings = model.settings
    like = model.embed.weight
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (settings.mean, settings.std))
    image = ((picture.float() / 255 - mean) / std).to(like.device, like.dtype)
    (decision,) = model(image.unsqueeze(0), budget).routings
    return decision.index[0, :, 0].cpu()


def palette(experts: int) -> list[tuple[float, float, float]]:
    """Colours of the experts, dark to bright, ordered for every kind of colour vision.

    Raises:
        ImportError: matplotlib is missing.
    """
    colours = _matplotlib().colormaps["viridis"](np.linspace(0, 1, experts) if experts > 1 else [1.0])
    return [(float(r), float(g), float(b)) for r, g, b, _ in colours]


def _lines(axes: Axes, profile: Profile, place) -> None:
    measure = profile.measure
    full = profile.dense.points[0]
    axes.axhline(full.quality.shown[measure], color=GREY, linestyle="--", linewidth=1.2, label="dense", zorder=1)
    axes.plot(place(full), full.quality.shown[measure], marker="*", markersize=11, color=GREY, linestyle="none")
    for number, network in enumerate(profile.networks):
        points = sorted(_known(network, measure), key=place)
        axes.plot(
            [place(point) for point in points],
            [point.quality.shown[measure] for point in points],
            label=network.name,
            **look(number),
        )
    axes.set_ylabel(measure)
    axes.set_xlim(left=0)
    _focus(axes, profile)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _focus(axes: Axes, profile: Profile) -> None:
    # A rival that falls apart at a low budget would press all that matters into a line at the top.
    full = profile.dense.points[0].quality.shown[profile.measure]
    worst = [min(p.quality.shown[profile.measure] for p in _known(n, profile.measure)) for n in profile.networks]
    best = max(
        [full, *(p.quality.shown[profile.measure] for n in profile.networks for p in _known(n, profile.measure))]
    )
    drop = max(full - worst[0], 0.005)
    if min(worst) < full - 3 * drop:
        axes.set_ylim(full - 3 * drop, best + 0.2 * drop)
        place = {"x": 0.99, "y": 0.02, "transform": axes.transAxes}
        axes.text(s="points further down: see the table", ha="right", fontsize="small", color=GREY, **place)


def _known(network: Network, measure: str) -> list[Point]:
    return [point for point in network.points if measure in point.quality.shown]


def _milliseconds(point: Point, batch: int, precision: str) -> float:
    latency = point.latency(batch, precision)
    return float("nan") if latency is None else latency.timing.median_ms


def _legend_of_widths(figure: Figure, widths: Sequence[int]) -> None:
    from matplotlib.patches import Patch

    # As in the tinted picture over a middle grey, so that legend and patches look alike.
    shown = [
        ((1 - TINT) / 2 + TINT * r, (1 - TINT) / 2 + TINT * g, (1 - TINT) / 2 + TINT * b)
        for r, g, b in palette(len(widths))
    ]
    names = [f"{width} channels" if width else "skipped" for width in widths]
    handles = [Patch(color=colour, label=name) for colour, name in zip(shown, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(widths), frameon=False)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _figure(width: float, height: float) -> Figure:
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _matplotlib():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Drawing needs matplotlib. Install it: pip install 'nestor[plot]'") from error
    return matplotlib
