"""Whether patches that lie side by side go to the same expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.types import NOBODY, Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.types import Routing


def agreement(routings: Sequence[Routing], grid: tuple[int, int]) -> float:
    """The share of pairs of neighbouring patches with the same first expert, mean over all sparse decisions.

    Args:
        routings: each over tokens that end with the patches, row by row.
        grid: rows and columns of the patches.

    Raises:
        ValueError: when no decision is sparse, or the grid has no neighbours.
    """
    sparse = [routing for routing in routings if isinstance(routing, Sparse)]
    if not sparse or grid[0] * grid[1] < 2:
        raise ValueError(f"neighbours need a sparse decision and two patches; got {len(sparse)} decisions on {grid}.")
    found = []
    for routing in sparse:
        first = routing.index[:, -grid[0] * grid[1] :, 0].unflatten(1, grid)
        pairs = [(first[:, 1:], first[:, :-1]), (first[:, :, 1:], first[:, :, :-1])]
        same = [((a == b) & (a != NOBODY)).flatten() for a, b in pairs]
        found.append(torch.cat(same).double().mean())
    return torch.stack(found).mean().item()
