"""Figures of networks that draw maps: the maps themselves, and how like the full network's they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.measure.draw import sheet
from nestor.measure.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from nestor.data import Pictures
    from nestor.models.mapped import Mapped

# As many lines as there are colours to tell them apart.
_LINES = 6


def spread(pictures: Pictures, count: int) -> Pictures:
    """Pictures evenly spread, so that each shows another photograph; of those cut into squares, the middle one.

    Args:
        pictures: squares of one photograph follow one another.
        count: how many are wanted; fewer come where there are fewer.

    Raises:
        ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError(f"a sheet shows at least 1 picture; got {count}.")
    return pictures.subset(range(len(pictures))[1 :: max(1, len(pictures) // count)][:count])


@torch.no_grad()
def draw_maps(network: Mapped, full: Mapped, pictures: Pictures, budgets: Sequence[float]) -> Figure:
    """Pictures in rows: each beside the full network's map of it and another network's maps at its budgets.

    Args:
        network: runs at all of the budgets.
        full: runs at its own budget.
        pictures: normalised as both want them; all are shown.
        budgets: columns, from left to right.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: a budget cannot be met.
    """
    images = pictures.stacked()
    maps = [full.map(images), *(network.map(images, budget=budget) for budget in budgets)]
    rows = [(pictures.pixels(i), *(each[i] for each in maps)) for i in range(len(pictures))]
    return sheet(("photograph", "full network", *(f"budget {budget:g}" for budget in budgets)), rows)


def over_spent(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], order: Sequence[str], *, what: str, told: str, title: str
) -> Repeats:
    """One number of a `MapLikeness` over what was spent, a line for each network.

    Args:
        found: by network and budget, the fields of a `MapLikeness`.
        order: of the networks, those that are missing left out; of many, the first that can be told apart.
        what: name of the field that is shown.
        told: what it means, on the vertical axis.
        title: what is shown.
    """
    names = [name for name in order if name in found][:_LINES]
    return Repeats(
        title=title,
        across="share of the full network's multiply-accumulates, head included",
        upward=told,
        lines={name: {at["spent"]: [at[what]] for at in found[name].values()} for name in names},
        levels={},
    )
