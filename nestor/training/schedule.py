"""What changes from step to step, as functions of the seed and the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

# Keeps a budget feasible that is rounded down to what the widths allow.
_SLACK = 1e-9


class Budgets(Protocol):
    """Says which budget each training step runs at."""

    def draw(self, seed: int, step: int, least: float) -> float:
        """The budget of one step, the whole batch alike, for a network whose smallest budget is `least`."""
        ...

    def shown(self, least: float) -> tuple[float, ...]:
        """Budgets worth watching while training, falling."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Every step at the same budget; 1 for dense networks.

    Raises:
        ValueError: the budget lies outside (0, 1].
    """

    budget: float = 1.0

    def __post_init__(self) -> None:
        _require_budgets((self.budget,))

    def draw(self, seed: int, step: int, least: float) -> float:
        """The budget, feasible or not."""
        return self.budget

    def shown(self, least: float) -> tuple[float, ...]:
        """The budget."""
        return (self.budget,)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Budgets uniform over [low, high], and the full network with probability `full`.

    What lies below the network's smallest budget is raised to it; what lies above `high` needs little practice, being
    close to the full network.

    Raises:
        ValueError: low and high are not 0 < low <= high <= 1, or full is no probability.
    """

    low: float = 0.25
    high: float = 0.75
    full: float = 0.1

    def __post_init__(self) -> None:
        _require_budgets((self.low, self.high))
        if self.low > self.high or not 0 <= self.full <= 1:
            raise ValueError(
                f"sampled budgets need low <= high and full in [0, 1]; "
                f"got low {self.low}, high {self.high}, full {self.full}. Swap or change them."
            )

    def draw(self, seed: int, step: int, least: float) -> float:
        """A number of two decimals, so that the plans of few budgets are made and kept."""
        chance, place = np.random.default_rng((seed, step)).random(2).tolist()
        if chance < self.full:
            return 1.0
        return _feasible(round(self.low + (self.high - self.low) * place, 2), least)

    def shown(self, least: float) -> tuple[float, ...]:
        """The full network, the middle and the low end."""
        low, high = _feasible(self.low, least), _feasible(self.high, least)
        return _some((1.0, round((low + high) / 2, 2), low), least)


@dataclass(frozen=True, kw_only=True)
class Leaning:
    """Budgets from `low` to 1 that lean to the low end: low + (1 - low) u^power, with u uniform over [0, 1].

    Where the compute of a training is given, low budgets buy more steps; where a network starts from nothing, steps are
    what it lacks. What lies below the network's smallest budget is raised to it.

    Raises:
        ValueError: low is not in (0, 1], or power is below 1.
    """

    low: float = 0.25
    power: float = 3.0

    def __post_init__(self) -> None:
        _require_budgets((self.low,))
        if self.power < 1:
            raise ValueError(f"budgets lean down with a power of at least 1; got {self.power}. Take 3.")

    def draw(self, seed: int, step: int, least: float) -> float:
        """A number of two decimals, so that the plans of few budgets are made and kept."""
        place = np.random.default_rng((seed, step)).random() ** self.power
        return _feasible(round(self.low + (1 - self.low) * place, 2), least)

    def shown(self, least: float) -> tuple[float, ...]:
        """The full network, the middle and the low end."""
        low = _feasible(self.low, least)
        return _some((1.0, round((low + 1) / 2, 2), low), least)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One of a few budgets each step, all equally likely; those of MoNE, section 4, unless others are given.

    What lies below the network's smallest budget is raised to it.

    Raises:
        ValueError: there is none, or one lies outside (0, 1].
    """

    budgets: tuple[float, ...] = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)

    def __post_init__(self) -> None:
        _require_budgets(self.budgets)

    def draw(self, seed: int, step: int, least: float) -> float:
        """One of them."""
        return _feasible(self.budgets[int(np.random.default_rng((seed, step)).integers(len(self.budgets)))], least)

    def shown(self, least: float) -> tuple[float, ...]:
        """The largest, the middle one and the smallest."""
        return _some(self.budgets, least)


@dataclass(frozen=True, kw_only=True)
class InTurn:
    """One of a few budgets each step, one after the other: the sum of their losses, a step for each term.

    So are networks trained that have no other budgets, such as MatFormer's widths (`Uniform.budgets`). What lies below
    the network's smallest budget is raised to it.

    Raises:
        ValueError: there is none, or one lies outside (0, 1].
    """

    budgets: tuple[float, ...]

    def __post_init__(self) -> None:
        _require_budgets(self.budgets)

    def draw(self, seed: int, step: int, least: float) -> float:
        """The next of them."""
        return _feasible(self.budgets[step % len(self.budgets)], least)

    def shown(self, least: float) -> tuple[float, ...]:
        """The largest, the middle one and the smallest."""
        return _some(self.budgets, least)


@dataclass(frozen=True, kw_only=True)
class Sandwich:
    """The sandwich rule (arXiv 1903.05134), a step for each slice: the full network, the smallest, and some between.

    With `Fit.sandwich` the full network runs in every step, and teaches the other where there is no teacher.

    Attributes:
        between: how many budgets, uniform over all that are feasible, follow on the full one and the smallest.

    Raises:
        ValueError: there are fewer than none between.
    """

    between: int = 2

    def __post_init__(self) -> None:
        if self.between < 0:
            raise ValueError(f"between must be at least 0; got {self.between}. 2 is usual.")

    def draw(self, seed: int, step: int, least: float) -> float:
        """A number of two decimals where it is random, so that the plans of few budgets are made and kept."""
        match step % (2 + self.between):
            case 0:
                return 1.0
            case 1:
                return _feasible(least, least)
            case _:
                place = np.random.default_rng((seed, step)).random()
                return _feasible(round(least + (1 - least) * place, 2), least)

    def shown(self, least: float) -> tuple[float, ...]:
        """The full network, the middle and the smallest budget."""
        return _some((1.0, round((least + 1) / 2, 2), least), least)


def rate_factor(step: int, steps: int, warmup: float, floor: float = 0.01) -> float:
    """Learning rate of a step (0, 1, ...) over the highest one: a linear rise, then half a cosine down to `floor`."""
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch shows its pictures."""
    return np.random.default_rng((seed, epoch, count)).permutation(count).tolist()


def batches(count: int, *, seed: int, epoch: int, batch: int, start: int, part: int, parts: int) -> Iterator[list[int]]:
    """Which pictures each step of an epoch shows, from step `start` on, for process `part` of `parts`.

    All parts together are the same whatever their number. Pictures that fill no batch wait for another epoch.
    """
    sequence, share = order(count, seed, epoch), batch // parts
    for first in range(start * batch, count - batch + 1, batch):
        begin = first + part * share
        yield sequence[begin : begin + share]


def _feasible(budget: float, least: float) -> float:
    return min(1.0, max(budget, least + _SLACK))


def _some(budgets: tuple[float, ...], least: float) -> tuple[float, ...]:
    known = sorted({_feasible(budget, least) for budget in budgets})
    return tuple(sorted({known[0], known[len(known) // 2], known[-1]}, reverse=True))


def _require_budgets(budgets: tuple[float, ...]) -> None:
    if not budgets or not all(0 < budget <= 1 for budget in budgets):
        raise ValueError(f"training budgets must lie in (0, 1]; got {budgets or 'none'}. 1 is the full network.")
