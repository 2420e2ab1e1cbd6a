"""What each mixture of a network tells of the class: which of them are worth their experts."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean
from typing import TYPE_CHECKING

import torch

from nestor.measure.traffic import by_class, normalised_information

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.data import Pictures
    from nestor.types import Routing


@torch.no_grad()
def informed(routings: Sequence[Routing], pictures: Pictures) -> list[float]:
    """For each decision, the normalised mutual information of classes and experts.

    Args:
        routings: about the first pictures.
        pictures: labelled.

    Raises:
        ValueError: there are fewer pictures than were decided about.
    """
    labels = torch.tensor(pictures.labels)
    short = [len(routing.scores) for routing in routings if len(routing.scores) > len(labels)]
    if short:
        raise ValueError(f"every item needs its label; got {len(labels)} pictures and {short[0]} items.")
    tables = [by_class(routing, labels[: len(routing.scores)], len(pictures.classes)) for routing in routings]
    return [normalised_information(table) for table in tables]


def least(known: Sequence[float], number: int) -> list[int]:
    """Which layers tell the least of the class: so many of them, by their places."""
    return sorted(range(len(known)), key=known.__getitem__)[:number]


def ends(known: Sequence[Sequence[float]], reached: Sequence[Sequence[float]]) -> tuple[float, float]:
    """What was reached where the least informed layer was concerned, and where the most informed, mean of the runs.

    Args:
        known: for each run, what every layer tells.
        reached: for each run, a number for every layer, such as the accuracy without it.

    Raises:
        ValueError: the two do not fit each other.
    """
    pairs = [(least(each, len(each)), values) for each, values in zip(known, reached, strict=True)]
    if any(len(order) != len(values) for order, values in pairs):
        raise ValueError("every layer needs a number for what it tells and one for what was reached.")
    low, high = (mean(values[order[end]] for order, values in pairs) for end in (0, -1))
    return low, high


def rise(known: Sequence[Sequence[float]]) -> float:
    """The least rise from a layer to the next of what they tell, mean of the runs; negative where it falls.

    Args:
        known: for each run, what every layer tells, two layers at least.
    """
    told = [mean(each) for each in zip(*known, strict=True)]
    return min(after - before for before, after in pairwise(told))


def spread(found: Sequence[Sequence[float]]) -> float:
    """How far several networks lie apart, from the lowest to the highest, mean of the runs.

    Args:
        found: for each network, one value a run.
    """
    return mean(max(run) - min(run) for run in zip(*found, strict=True))
