"""What several networks reached, each over what it costs, ready to be drawn, and how far two answers lie apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.measure.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor


def over_cost(details: Mapping[str, Any], title: str = "Fashion-MNIST", level: str | None = None) -> Repeats | None:
    """A point for each network of a contest: its accuracies over its multiply-accumulates; None without a contest.

    Args:
        details: `accuracy` and `cost` by network, as `nestor.training.contest` finds them.
        title: what is shown.
        level: the network that is drawn as a level line, for instance the dense one.
    """
    if not details:
        return None
    values, cost = details["accuracy"], details["cost"]
    return Repeats(
        title=title,
        across="multiply-accumulates, share of the dense network's",
        upward="accuracy, test part",
        lines={name: {cost[name]: list(values[name])} for name in values if name != level},
        levels={} if level is None else {level: list(values[level])},
    )


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Relative error: the norm of the difference over the norm of theirs."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())
