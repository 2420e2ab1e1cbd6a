"""Searching for the cheapest of many settings: by a genetic algorithm, and by bisection."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Choice: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The cheapest choice met, its cost, and how many different choices were tried."""

    choice: Choice
    cost: float
    tried: int


def exhaustive(space: Sequence[Sequence[int]], cost: Callable[[Choice], float]) -> Found:
    """Try every combination of one value from each list."""
    _require(space)
    costs = {choice: cost(choice) for choice in product(*space)}
    best = min(costs, key=lambda choice: costs[choice])
    return Found(choice=best, cost=costs[best], tried=len(costs))


def genetic(
    space: Sequence[Sequence[int]],
    cost: Callable[[Choice], float],
    *,
    population: int = 32,
    generations: int = 16,
    seed: int = 0,
    start: Sequence[Choice] = (),
) -> Found:
    """Keep the better half, cross them and change a value now and then.

    Args:
        space: the values of each part of a choice.
        cost: what is to be small; infinite where a choice is not allowed.
        population: how many live at a time.
        generations: how often they are replaced.
        seed: of all chance.
        start: choices to begin with, beside random ones.

    Raises:
        ValueError: when a list is empty, or the population below 4.
    """
    _require(space)
    if population < 4 or generations < 1:
        raise ValueError(f"there must be 4 choices at a time and a generation; got {population} and {generations}.")
    rng, known = np.random.default_rng(seed), dict[Choice, float]()

    def judged(choice: Choice) -> float:
        if choice not in known:
            known[choice] = cost(choice)
        return known[choice]

    def drawn() -> Choice:
        return tuple(int(rng.choice(values)) for values in space)

    def child(first: Choice, second: Choice) -> Choice:
        mixed = [a if rng.random() < 0.5 else b for a, b in zip(first, second, strict=True)]
        for part, values in enumerate(space):
            if rng.random() < 1 / len(space):
                at = values.index(mixed[part]) + int(rng.integers(-2, 3))
                mixed[part] = values[min(len(values) - 1, max(0, at))]
        return tuple(mixed)

    alive = [*start, *(drawn() for _ in range(population - len(start)))]
    for _ in range(generations):
        alive = sorted(dict.fromkeys(alive), key=judged)[: population // 2]
        parents = rng.integers(0, len(alive), (population - len(alive), 2)).tolist()
        alive += [child(alive[a], alive[b]) for a, b in parents]
    best = min(alive, key=judged)
    return Found(choice=best, cost=judged(best), tried=len(known))


def least(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest whole number from low to high from which on something holds, by bisection; None if it never does.

    Raises:
        ValueError: when low lies above high.
    """
    if low > high:
        raise ValueError(f"low must not lie above high; got {low} and {high}.")
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _require(space: Sequence[Sequence[int]]) -> None:
    if not space or not all(len(values) for values in space):
        raise ValueError(f"every part of a choice needs a value; got {[list(values) for values in space]}.")
