"""Which budgets a network can be run at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.measure.cost import patches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nestor.models.video import Network


def in_reach(network: Network, size: int, budgets: Iterable[float]) -> tuple[float, ...]:
    """Those of some budgets that a network can keep on pictures of this size in pixels, in their order.

    Raises:
        ValueError: when the network's patches do not divide the size.
    """
    least = network.least_budget(patches(network, size))
    return tuple(budget for budget in budgets if budget >= least)
