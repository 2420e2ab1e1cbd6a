"""Which budget the next batch gets: the largest that keeps the promise on latency, for who waits and who comes next."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nestor.serving.order import Order
    from nestor.serving.times import Times

# Share of answers that may be late by plan. The promise allows twice as many; the rest is for what no plan foresees.
LATE = 0.025
# Share of the server's time that the traffic may take at a budget: for staying there, and for going up to it.
STAY, RISE = 0.95, 0.85
# Share of the target that two batches may fill, one of which takes long; they may be a little too long together, since
# few come just when the first begins. And how much slower a row may be in a smaller batch that serves as well.
PAIR, HARDLY = 1.1, 1.1
# Seconds over which the traffic is averaged. A sudden rise is looked for over a share of the target, since that is how
# soon it must be known; it is believed when chance would bring it about this rarely, in standard deviations.
MEMORY, BRIEF, RARE = 1.5, 0.6, 3.0
# Share of the target that is planned with. It follows the latencies that were seen: it falls when 5 of 100 are above
# the first of these shares of what was promised, which leaves the rest for sending the answer, and rises when fewer are
# above the second. Plans are for who might come, so that it may be above 1 where they come true seldom.
LEAST_MARGIN, MOST_MARGIN = 0.5, 1.25
HURRY, CALM = 0.9, 0.8
# By which factor it falls, and by how much it rises in a second. Latencies are remembered for `SOON` seconds, or longer
# where they are fewer than `SEEN`, and never more than `RECENT` of them.
FALL, EASE = 0.9, 0.06
SEEN, RECENT, SOON = 20, 400, 5.0


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the server promises, and within which bounds.

    Attributes:
        target: seconds from arrival within which 95 of 100 requests are answered.
        capacity: rows that may wait.
        patience: seconds after which a request without a deadline of its own is given up.
        settle: seconds for which a higher budget must have been affordable before it is taken; one step each.

    Raises:
        ValueError: a number is not above 0.
    """

    target: float = 0.08
    capacity: int = 1024
    patience: float = 10.0
    settle: float = 0.25

    def __post_init__(self) -> None:
        for name in ("target", "capacity", "patience", "settle"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite; got {value}.")


class Controller:
    """Chooses budget and size of each batch from the queue, learned service times and the target.

    It goes down at once, and up one step at a time after a higher budget was affordable for a while.
    """

    def __init__(self, policy: Policy, times: Times):
        self.policy, self.times = policy, times
        self.level = len(times.budgets) - 1
        self.margin = 1.0
        self._since: float | None = None
        self._rate = self._brief = 0.0
        self._last, self._glance = -math.inf, min(BRIEF * policy.target, MEMORY / 4)
        self._seen: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._judged = self._fell = -math.inf

    @property
    def budget(self) -> float:
        """What a batch is given that asks for nothing else."""
        return self.times.budgets[self.level]

    def arrive(self, now: float, rows: int) -> None:
        """Take note of traffic, refused or not."""
        gone = max(now - self._last, 0.0)
        self._rate = self._rate * math.exp(-gone / MEMORY) + rows / MEMORY
        self._brief = self._brief * math.exp(-gone / self._glance) + rows / self._glance
        self._last = max(now, self._last)

    def rate(self, now: float) -> float:
        """Rows a second that lately arrived: an average, until more come at once than chance explains."""
        gone = max(now - self._last, 0.0)
        rate, brief = self._rate * math.exp(-gone / MEMORY), self._brief * math.exp(-gone / self._glance)
        # The last row alone counts for 1 / glance; of rows that come at random the estimate varies by rate / 2 glance.
        return brief if brief - rate > 1 / self._glance + RARE * math.sqrt(rate / (2 * self._glance)) else rate

    def planned(self, order: Order) -> float:
        """Seconds after its arrival by which an order shall be answered; a deadline that it named is never exceeded."""
        if order.deadline is None:
            return self.margin * self.policy.target
        return min(self.margin, 1.0) * order.deadline

    def decide(self, now: float, slacks: Sequence[float]) -> tuple[float, int]:
        """Budget and size of the next batch.

        Args:
            now: seconds.
            slacks: seconds left for each row that waits until it is `planned` to be answered, ascending.
        """
        rate, reached = self.rate(now), self.level
        while reached >= 0 and not self._size(reached, slacks, rate, STAY):
            reached -= 1
        if reached < self.level:
            self.level, self._since = max(reached, 0), None
        else:
            self._rise(now, slacks, rate)
        return self.budget, self._size(self.level, slacks, rate, STAY) or self.size(self.budget)

    def idle(self, now: float) -> None:
        """Take note that nobody waits, so that a higher budget is affordable from now on."""
        if self._since is None:
            self._since = now

    def size(self, budget: float) -> int:
        """The size of batch that serves about most at a budget while a request can wait for one and be in the next.

        The margin has no say in it: smaller batches serve fewer a second, and a queue that is late would grow.
        """
        times, target = self.times, self.policy.target
        short = [rows for rows in times.steps if times.mean(budget, rows) + times.high(budget, rows) <= PAIR * target]
        each = {rows: times.mean(budget, rows) / rows for rows in short or times.steps[:1]}
        # Where larger batches serve hardly more, they only make everybody wait.
        return min(rows for rows, seconds in each.items() if seconds <= HARDLY * min(each.values()))

    def ends(self, budget: float, rows: int, now: float, wait: float) -> float:
        """Expected seconds until so many rows are answered, if the first batch of them begins after `wait`.

        The last batch of them is filled by who comes meanwhile. Nothing is added for batches that take long: the margin
        was learned from them.
        """
        size = self.size(budget)
        last = (rows - 1) % size + 1
        wait += self.times.drain(budget, rows - last, size)
        return wait + self.times.mean(budget, min(size, last + math.floor(self.rate(now) * wait)))

    def answered(self, now: float, orders: Iterable[Order]) -> None:
        """Take note of how late orders are answered, and plan more or less carefully from then on."""
        target = self.policy.target
        # Whoever came before the last time that plans became more careful says nothing of how they are now.
        after = (each for each in orders if each.arrived >= self._fell)
        self._seen.extend((now, (now - each.arrived) / each.within(target)) for each in after)
        # Nor do those of another traffic, once there are enough of this one.
        while len(self._seen) > SEEN and self._seen[0][0] < now - SOON:
            self._seen.popleft()
        if len(self._seen) < SEEN or now - self._judged < target:
            return
        gone, self._judged = min(now - self._judged, 1.0), now
        late = sorted(share for _, share in self._seen)[math.ceil(0.95 * len(self._seen)) - 1]
        if late > HURRY:
            self.margin = max(LEAST_MARGIN, FALL * self.margin)
            # What was late is paid for once.
            self._fell = now
            self._seen.clear()
        elif late < CALM:
            self.margin = min(MOST_MARGIN, self.margin + EASE * gone)

    def _rise(self, now: float, slacks: Sequence[float], rate: float) -> None:
        top = self.level
        while top + 1 < len(self.times.budgets) and self._size(top + 1, slacks, rate, RISE):
            top += 1
        if top == self.level:
            self._since = None
            return
        if self._since is None:
            self._since = now
        steps = math.floor((now - self._since) / self.policy.settle)
        self.level = min(top, self.level + steps)
        self._since += steps * self.policy.settle

    def _size(self, level: int, slacks: Sequence[float], rate: float, busy: float) -> int:
        """The size that empties the queue soonest among those that keep the promise at a level; 0 if there is none."""
        budget, best, soonest = self.times.budgets[level], 0, math.inf
        for size in self.times.steps:
            if rate * self.times.mean(budget, size) > busy * size:
                continue
            drain = self.times.drain(budget, len(slacks), size)
            if drain < soonest * (1 - 1e-9) and self._keeps(budget, size, slacks, rate):
                best, soonest = size, drain
        return best

    def _keeps(self, budget: float, size: int, slacks: Sequence[float], rate: float) -> bool:
        times, rows = self.times, len(slacks)
        # Who cannot be saved is no reason to hurry; those who come after are looked at all the same.
        hopeless = bisect_left(slacks, times.mean(times.budgets[0], 1))
        for first in range(0, rows, size):
            last = min(first + size, rows)
            # Slacks ascend, so that the first of a batch is the one that can wait least.
            tightest = max(first, hopeless)
            if tightest < last and slacks[tightest] < times.by(budget, last, size):
                return False
        # Of those who come while the queue is emptied, the first wait too long if one more batch ends too late.
        drain, target = times.drain(budget, rows, size), self.policy.target * self.margin
        late = rate * min(max(drain + times.high(budget, max(1, min(size, rows))) - target, 0.0), drain)
        return late <= LATE * (rows + rate * drain)
