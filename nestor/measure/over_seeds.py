"""Rows of dots from what several networks reached with several seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.measure.dots import Dots

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def over_seeds(found: Mapping[str, Sequence[float]], first: str, title: str, across: str = "accuracy") -> Dots:
    """A row for each network, one of them first.

    Args:
        found: for each network, one value a seed.
        first: the network that stands out, at the top; the others follow in their order.
        title: what is shown.
        across: what the values are.

    Raises:
        ValueError: the first is not among them, or a network has no run.
    """
    if first not in found:
        raise ValueError(f"the first row must be one of {', '.join(found) or 'none'}; got {first!r}.")
    return Dots(title=title, across=across, rows={first: found[first], **found})
