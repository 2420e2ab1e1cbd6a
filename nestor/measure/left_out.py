"""What several networks found on each kind of picture that they had not learned from, put together."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any

from nestor.measure.dots import Dots

if TYPE_CHECKING:
    from collections.abc import Mapping


def by_run(found: Mapping[str, Any], what: str) -> dict[str, list[float]]:
    """For each network the mean of each run over all that was left out.

    Args:
        found: by what was left out, as from `nestor.training.contest.contest`.
        what: was found, for instance accuracy.
    """
    each = [there[what] for there in found.values()]
    return {name: [mean(runs) for runs in zip(*(one[name] for one in each), strict=True)] for name in each[0]}


def left_out(details: Mapping[str, Mapping[str, Any]]) -> tuple[Dots, ...] | None:
    """Accuracies of each set by network; None without one.

    Args:
        details: by set, then by what was left out of it, as in `by_run`.
    """
    across = "accuracy on what was left out"
    dots = (Dots(title=name, across=across, rows=by_run(each, "accuracy")) for name, each in details.items())
    return tuple(dots) or None
