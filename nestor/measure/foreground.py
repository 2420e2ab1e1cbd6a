"""Whether a network spends its width on the thing that a picture shows, where the ground behind it is even."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import avg_pool2d

from nestor.measure.routed import experts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.data import Pictures
    from nestor.measure.cost import Elastic


def foreground(pictures: Pictures, patch: int, *, ground: int = 0) -> Tensor:
    """Share of each patch's pixels that are brighter than the ground: (N, patches).

    Args:
        pictures: at least one.
        patch: side of a patch in pixels, of which a picture holds a whole number.
        ground: the brightest that the ground is, from 0 to 254.

    Raises:
        ValueError: there is no picture, patches do not fit, or everything would be ground.
    """
    if not len(pictures) or patch < 1 or pictures.size % patch:
        raise ValueError(
            f"there must be pictures with a whole number of patches; got {len(pictures)} of {pictures.size} px and "
            f"patches of {patch}. Give a divisor of the size."
        )
    if not 0 <= ground <= 254:
        raise ValueError(f"ground must be a brightness from 0 to 254; got {ground}.")
    bright = torch.stack([pictures.pixels(i).amax(0) > ground for i in range(len(pictures))])
    return avg_pool2d(bright[:, None].float(), patch).flatten(1)


def in_widest(model: Elastic, pictures: Pictures, patch: int, budgets: Sequence[float]) -> dict[str, dict[str, float]]:
    """Mean foreground of patches of the `widest` expert and of `all`, by budget, as JSON can hold it.

    Args:
        model: an elastic network.
        pictures: at least one.
        patch: side of a patch in pixels.
        budgets: of the network, at each of which the widest expert has at least one patch of every picture.

    Raises:
        ValueError: the widest expert has no patch at a budget, or pictures, patches or budgets do not fit.
    """
    share, images = foreground(pictures, patch), pictures.stacked()
    found: dict[str, dict[str, float]] = {"widest": {}, "all": {}}
    for budget in budgets:
        widest = experts(model, images, budget)[:, 0] == len(model.plan(share.shape[1], budget)) - 1
        if not widest.any():
            raise ValueError(f"the widest expert must have a patch; at budget {budget} it has none. Raise the budget.")
        found["widest"][str(budget)] = float(share[widest].mean())
        found["all"][str(budget)] = float(share.mean())
    return found
