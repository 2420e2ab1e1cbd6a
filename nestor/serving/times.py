"""How long a batch takes at each budget: measured before the start, learned from every batch after it."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Shares of a surprise that go to the whole machine and to this budget and size; of these the latter fades, so that one
# slow spell cannot keep a budget from ever being tried again.
MACHINE, HERE, FADE, SPREAD = 0.1, 0.2, 0.02, 0.1
CLIP = math.log(4)


class Times:
    """Seconds of a batch, by budget and rows: a measured table, a factor for the machine, one for each entry.

    Args:
        measured: seconds of a batch, for every budget and every one of some sizes.

    Raises:
        ValueError: the table is empty, has gaps, or holds what is no time.
    """

    def __init__(self, measured: Mapping[tuple[float, int], float]):
        self.budgets = tuple(sorted({budget for budget, _ in measured}))
        self.sizes = tuple(sorted({rows for _, rows in measured}))
        # Steps finer than a factor of two, since a batch twice as large may be too late and half of it waste.
        self.steps = tuple(sorted({*self.sizes, *((a + b) // 2 for a, b in pairwise(self.sizes))}))
        if not measured or len(measured) != len(self.budgets) * len(self.sizes):
            raise ValueError(f"service times need every budget at every size; got {sorted(measured)}.")
        if not all(0 < seconds < math.inf for seconds in measured.values()):
            raise ValueError(f"service times must be above 0 and finite; got {dict(measured)}.")
        self._measured = dict(measured)
        self._own = dict.fromkeys(measured, 0.0)
        self._machine = 0.0
        self._spread = 0.05
        self._now = dict(measured)
        self._least: dict[float, float] = {}
        self._refresh()

    def mean(self, budget: float, rows: int) -> float:
        """Expected seconds of a batch of so many rows."""
        below, above, share = self._between(rows)
        low, high = self._now[budget, below], self._now[budget, above]
        return low + share * (high - low)

    def high(self, budget: float, rows: int) -> float:
        """Seconds that few batches of so many rows exceed."""
        return self.mean(budget, rows) * math.exp(min(2 * self._spread, math.log(2)))

    def drain(self, budget: float, rows: int, size: int) -> float:
        """Expected seconds of so many rows in batches of a size, the last of which holds the rest."""
        full, rest = divmod(rows, size)
        return (full * self.mean(budget, size) if full else 0.0) + (self.mean(budget, rest) if rest else 0.0)

    def by(self, budget: float, rows: int, size: int) -> float:
        """Seconds that so many rows in batches of a size seldom exceed; that all take long at once is rarer yet."""
        last = (rows - 1) % size + 1
        return self.drain(budget, rows - last, size) + self.high(budget, last)

    @property
    def longest(self) -> float:
        """Expected seconds of the slowest batch that was measured."""
        return max(self._now.values())

    def least(self, budget: float) -> float:
        """Expected seconds of a row in the size of batch that serves most rows a second."""
        return self._least[budget]

    def learn(self, budget: float, rows: int, seconds: float) -> None:
        """Take note of what a batch took."""
        surprise = math.log(max(seconds, 1e-9) / self.mean(budget, rows))
        surprise = min(max(surprise, -CLIP), CLIP)
        self._spread += SPREAD * (abs(surprise) - self._spread)
        self._machine += MACHINE * surprise
        for entry in self._own:
            self._own[entry] *= 1 - FADE
        below, above, share = self._between(rows)
        share = min(max(share, 0.0), 1.0)
        self._own[budget, below] += HERE * (1 - share) * surprise
        self._own[budget, above] += HERE * share * surprise
        self._refresh()

    def _refresh(self) -> None:
        # Asked for far more often than it changes.
        self._now = {
            entry: seconds * math.exp(self._machine + self._own[entry]) for entry, seconds in self._measured.items()
        }
        self._least = {budget: min(self._now[budget, rows] / rows for rows in self.sizes) for budget in self.budgets}

    def _between(self, rows: int) -> tuple[int, int, float]:
        """The sizes around, and how far in between; sizes beyond the table go on along its last stretch."""
        if len(self.sizes) == 1:
            return self.sizes[0], self.sizes[0], 0.0
        place = min(max(bisect_left(self.sizes, rows), 1), len(self.sizes) - 1)
        below, above = self.sizes[place - 1], self.sizes[place]
        return below, above, (rows - below) / (above - below)
