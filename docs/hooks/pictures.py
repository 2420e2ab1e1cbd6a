"""Pictures of the site, made anew whenever it is built."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

import nestor
from nestor.api import prepare
from nestor.data import Pictures
from nestor.measure.draw import COLOURS, TINT, choices, legend_below, palette, panel, routing
from nestor.ops.bands import normalise
from nestor.routing.capacity import solve
from nestor.surgery.basis import streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.models.vit import ViT

# A real photograph that travels with matplotlib and belongs to everybody.
PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
SIDE = 224
PATCHES = 256
CALIBRATION = 24
BUDGETS = (1.0, 0.8, 0.65, 0.5, 0.35, 0.2)


@dataclass(frozen=True, kw_only=True)
class View:
    """What the dial shows at one budget."""

    budget: float
    words: str

    @property
    def name(self) -> str:
        """Of its picture."""
        return f"budget-{100 * self.budget:.0f}"


@cache
def all_pictures() -> dict[str, bytes]:
    """All of them, by path."""
    drawn: dict[str, Callable[[], Figure]] = {
        "nested": nested,
        "capacity": capacity,
        "energy": energy,
        "components": components,
        "tokens": tokens,
    }
    found = {f"pictures/{name}.png": _png(draw()) for name, draw in drawn.items()}
    found |= {f"pictures/{view.name}.png": _square(routed(view.budget)) for view in views()}
    return found | {"pictures/picture.png": _square(portrait(SIDE).permute(1, 2, 0).numpy())}


@cache
def dense() -> ViT:
    """The real network."""
    return nestor.load("dinov2-small")


@cache
def elastic() -> ViT:
    """The same, nested in the default shape."""
    return nestor.nest(dense(), _crops(), pictures=CALIBRATION)


@cache
def portrait(size: int) -> torch.Tensor:
    """The portrait, uint8 (3, size, size)."""
    return prepare.pixels(PORTRAIT, size)


@cache
def views() -> tuple[View, ...]:
    """The dial's."""
    model, found = elastic(), []
    for budget in BUDGETS:
        plan = model.plan(PATCHES, budget)
        spent = 100 * model.macs(plan) / model.full_macs(PATCHES)
        words = f"budget {budget:g}: {plan[-1]} of {PATCHES} patches at full width, {spent:.0f}% of the compute"
        found.append(View(budget=budget, words=words))
    return tuple(found)


@cache
@torch.no_grad()
def energies() -> dict[str, list[float]]:
    """Share of the energy that the first channels hold, one more at a time, by the order of the channels."""
    model, images = dense(), prepare.stacked(_crops(), dense())
    D = model.settings.nest.widths[-1]
    moment = torch.zeros(D, D, dtype=torch.float64)
    for band, _ in streams(model, images):
        rows = normalise(band.rows, band.tail, D, model.settings.eps).flatten(0, 1)
        moment += (rows.T @ rows).double()
    own = moment.diagonal()
    orders = {
        "as they come": own,
        "sorted by energy": own.sort(descending=True).values,
        "in principal components": torch.linalg.eigvalsh(moment).flip(0),
    }
    return {name: (each.cumsum(0) / each.sum()).tolist() for name, each in orders.items()}


def routed(budget: float) -> np.ndarray:
    """The portrait with each patch tinted by its width, (SIDE, SIDE, 3)."""
    figure = Figure(figsize=(1, 1), dpi=SIDE)
    axes = figure.add_axes((0, 0, 1, 1))
    model, picture = elastic(), portrait(SIDE)
    side = SIDE // model.settings.patch
    routing(axes, picture, choices(model, picture, budget), (side, side), model.settings.nest.widths)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=SIDE)
    return np.asarray(Image.open(buffer).convert("RGB"))


def nested() -> Figure:
    """Experts as prefixes of one matrix."""
    figure, axes = panel()
    widths = (0.25, 0.5, 0.75, 1.0)
    for share, colour in sorted(zip(widths, palette(len(widths)), strict=True), reverse=True):
        rest = [(1 - TINT) / 2 + TINT * part for part in colour]
        axes.fill([0, share, share, 0], [0, 0, -share, -share], color=rest, edgecolor="white", linewidth=2)
        axes.text(share - 0.02, -share + 0.03, f"{share:g}", ha="right", color="black" if share > 0.6 else "white")
    axes.set_title("One matrix: each expert is its upper left corner", loc="left")
    axes.set_xlabel("channels that a token reads, share of all")
    axes.set_ylabel("channels that it writes")
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


def capacity() -> Figure:
    """Shares of the patches over budgets, four widths that double."""
    figure, axes = panel()
    costs = (0.125, 0.25, 0.5, 1.0)
    budgets = np.linspace(costs[0], costs[-1], 101)
    shares = np.array([solve(float(budget), costs).fractions for budget in budgets]).T
    names = [f"width {cost:g}" for cost in costs]
    axes.stackplot(budgets, 100 * shares, colors=palette(len(costs)), labels=names, alpha=0.8)
    axes.set_title("The most even split that costs no more", loc="left")
    axes.set_xlabel("mean cost of a patch, share of the full one")
    axes.set_ylabel("patches, %")
    axes.margins(0)
    legend_below(figure, axes)
    return figure


def energy() -> Figure:
    """How fast the energy of the stream comes together, by the order of the channels."""
    figure, axes = panel()
    for (name, shares), colour, style in zip(energies().items(), COLOURS, (":", "--", "-"), strict=False):
        axes.plot(range(1, len(shares) + 1), [100 * share for share in shares], style, color=colour, label=name)
    axes.set_title("What the first channels hold", loc="left")
    axes.set_xlabel("channels")
    axes.set_ylabel("energy of what the layers read, %")
    axes.set_xlim(0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend_below(figure, axes)
    return figure


def components() -> Figure:
    """The first three channels of every patch as a colour, before and after the rotation."""
    # Small, so that its words can be read where it is as narrow as a phone.
    figure = Figure(figsize=(5, 2), layout="constrained")
    names = ("the picture", "three channels", "three components")
    shown = (portrait(2 * SIDE).permute(1, 2, 0).numpy(), _first_three(dense()), _first_three(elastic()))
    for axes, name, values in zip(figure.subplots(1, 3), names, shown, strict=True):
        axes.imshow(values, interpolation="nearest")
        axes.set_title(name, fontsize=11)
        axes.set_axis_off()
    return figure


def tokens() -> Figure:
    """Tokens that are left from block to block at half the budget."""
    figure, axes = panel()
    model = elastic()
    widths, sizes = model.settings.nest.widths, np.array(model.sizes(model.plan(PATCHES, 0.5))).T
    names, blocks = [f"width {width}" for width in widths], np.arange(1, sizes.shape[1] + 1)
    below = np.zeros(sizes.shape[1])
    for count, name, colour in zip(sizes, names, palette(len(widths)), strict=True):
        axes.bar(blocks, count, bottom=below, color=colour, label=name, alpha=0.8)
        below = below + count
    axes.set_title("Tokens left, budget 0.5", loc="left")
    axes.set_xlabel("block")
    axes.set_ylabel("tokens")
    axes.spines[["top", "right"]].set_visible(False)
    legend_below(figure, axes)
    return figure


@cache
def _crops() -> Pictures:
    """Pieces of the portrait in rows, to calibrate on."""
    with Image.open(PORTRAIT) as opened:
        whole = opened.convert("RGB")
    columns, side = 4, whole.width // 2
    rows = CALIBRATION // columns
    places = [
        (x * (whole.width - side) // (columns - 1), y * (whole.height - side) // (rows - 1))
        for y in range(rows)
        for x in range(columns)
    ]
    return Pictures(
        items=[whole.crop((x, y, x + side, y + side)) for x, y in places],
        rows=tuple(range(CALIBRATION)),
        size=SIDE // 2,
        classes=(),
        labels=(-1,) * CALIBRATION,
        names=tuple(map(str, range(CALIBRATION))),
    )


@torch.no_grad()
def _first_three(model: ViT) -> np.ndarray:
    image = prepare.normalised(model, portrait(2 * SIDE))
    counts = (0,) * (model.settings.nest.experts - 1) + (4 * PATCHES,)
    bands, order, _ = model.encode(image, counts)
    rows, prefix = bands[-1].rows[0], model.settings.prefix
    found = torch.empty_like(rows)
    found[order[0]] = rows
    patches = found[prefix:, :3]
    low, high = (patches.quantile(share, dim=0) for share in (0.02, 0.98))
    side = 2 * SIDE // model.settings.patch
    return ((patches - low) / (high - low)).clamp(0, 1).reshape(side, side, 3).numpy()


def _square(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # Twice as large, for screens with more dots than pixels; patches keep their edges.
    Image.fromarray(values).resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, metadata={"Software": None})
    return buffer.getvalue()
