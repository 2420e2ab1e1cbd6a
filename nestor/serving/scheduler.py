"""Queue and controller together: what is admitted, what runs next, and that everybody gets exactly one answer."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from nestor.serving.controller import Controller
from nestor.serving.order import RefusedError
from nestor.serving.queue import Queue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nestor.serving.controller import Policy
    from nestor.serving.order import Order
    from nestor.serving.times import Times


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Orders that run together.

    Attributes:
        orders: in the order of their rows.
        budget: that they run at.
        started: seconds on the server's clock.
        waiting: rows that stayed behind.
    """

    orders: tuple[Order, ...]
    budget: float
    started: float
    waiting: int

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(order.rows for order in self.orders)


# Seconds by which a batch may exceed what was expected before the server says that it is not ready.
HANGS = 1.0

Refusals = list[tuple["Order", RefusedError]]


class Scheduler:
    """Decides; it neither waits, nor runs anything, nor looks at a clock. One thread at a time.

    Every order that is offered comes back once: in a batch, or refused by `offer`, `take` or `close`.

    Attributes:
        coming: orders, by number, that will be offered soon: whoever comes after them finds them ahead.
    """

    def __init__(self, policy: Policy, times: Times):
        self.policy, self.controller, self.queue = policy, Controller(policy, times), Queue(self._least)
        self.closed = False
        self.coming: dict[int, Order] = {}
        self._busy_until: float | None = None
        self._stalled_until: float | None = None

    def stalled(self, now: float) -> bool:
        """Whether nothing can be run for a while, be it that a batch does not end."""
        return self._stalled_until is not None or self._overrun(now) > max(HANGS, self.policy.target)

    @property
    def times(self) -> Times:
        """How long batches take."""
        return self.controller.times

    @times.setter
    def times(self, times: Times) -> None:
        # Another network of the same budgets begins with what was measured of it.
        self.controller.times = times

    def refusal(self, order: Order, now: float) -> RefusedError | None:
        """What an order would be told if it were offered now."""
        found = self._weighed(order, now)
        return found if isinstance(found, RefusedError) else None

    def offer(self, order: Order, now: float) -> Refusals:
        """Queue an order; returns who was refused for that: nobody, others that made way, or the order itself."""
        self.controller.arrive(now, order.rows)
        gone = self._weighed(order, now)
        if isinstance(gone, RefusedError):
            return [(order, gone)]
        for each in gone:
            self.queue.remove(each)
        self.queue.push(order)
        message = "too much traffic: a request of higher priority, or of who asks for less, took this place."
        return [(each, RefusedError("displaced", message, after=self._cost(each))) for each in gone]

    def take(self, now: float) -> tuple[Batch | None, Refusals]:
        """The next batch, if anybody waits, and those who no longer do."""
        refused = self.expire(now)
        head = self.queue.head()
        if head is None:
            return None, refused
        slacks = sorted(
            order.arrived + self.controller.planned(order) - now for order in self.queue for _ in range(order.rows)
        )
        level, size = self.controller.decide(now, slacks)
        budget = self.admissible(head, level)
        if budget != level:
            size = min(size, self.controller.size(budget))
        orders = self.queue.take(size, lambda order: order.allows(budget))
        batch = Batch(orders=orders, budget=budget, started=now, waiting=self.queue.rows)
        self._busy_until = now + self.times.mean(budget, batch.rows)
        return batch, refused

    def finish(self, batch: Batch, now: float, *, answered: bool = True) -> None:
        """Take note that a batch has ended; one that failed teaches nothing."""
        self._busy_until = None
        if answered:
            self.times.learn(batch.budget, batch.rows, now - batch.started)
            self.controller.answered(now, batch.orders)
        if not len(self.queue):
            self.controller.idle(now)

    def expire(self, now: float) -> Refusals:
        """Refuse those whose deadline has passed."""
        expired = [order for order in self.queue if order.within(self.policy.patience) <= now - order.arrived]
        for order in expired:
            self.queue.remove(order)
        return [(order, _expired(order, now)) for order in expired]

    def due(self) -> float:
        """When the first of those who wait will have waited too long, if nobody takes them before; inf if none does."""
        patience = self.policy.patience
        return min((order.arrived + order.within(patience) for order in self.queue), default=math.inf)

    def stall(self, now: float, seconds: float) -> Refusals:
        """Take note that nothing can be run for about so long; refuses those who were promised an answer before.

        Whoever gave a later deadline waits.
        """
        self._stalled_until = now + seconds
        late = [order for order in self.queue if order.within(self.policy.target) <= now - order.arrived + seconds]
        for order in late:
            self.queue.remove(order)
        return [(order, _restarting(seconds)) for order in late]

    def resume(self) -> None:
        """Take note that batches can be run again."""
        self._stalled_until = None

    def close(self, *, at_once: bool = False) -> Refusals:
        """Admit nobody from now on; `at_once` refuses those who wait, too."""
        self.closed = True
        left = list(self.queue) if at_once else []
        for order in left:
            self.queue.remove(order)
        return [(order, RefusedError("draining", "the server is stopping; ask again.", after=1.0)) for order in left]

    def admissible(self, order: Order, budget: float) -> float:
        """The declared budget nearest to one that an order allows.

        Raises:
            ValueError: the order allows no declared budget.
        """
        allowed = [each for each in self.times.budgets if order.allows(each)]
        if not allowed:
            asked = f"{order.floor:g}" if order.floor == order.ceiling else f"{order.floor:g} to {order.ceiling:g}"
            declared = ", ".join(f"{each:g}" for each in self.times.budgets)
            raise ValueError(f"the budget must be one of {declared}; got {asked}.")
        return min(allowed, key=lambda each: abs(each - budget))

    def _weighed(self, order: Order, now: float) -> list[Order] | RefusedError:
        """Who has to leave for an order to be admitted now, or what it is told instead."""
        if self.closed:
            return RefusedError("draining", "the server is stopping; ask another one, or again later.", after=1.0)
        if order.within(self.policy.patience) <= now - order.arrived:
            return _expired(order, now)
        coming = [each for each in self.coming.values() if each.number < order.number]
        if self._stalled_until is not None:
            wait = self._stall(now)
            if order.within(self.policy.target) <= now - order.arrived + wait:
                return _restarting(wait)
        elif self._busy_until is None and not len(self.queue) and not coming:
            return []
        ahead = self._ahead(order.priority, coming)
        waiting = self.queue.rows + sum(each.rows for each in coming)
        room, late = self.policy.capacity - waiting - order.rows, self._late(order, now, ahead)
        refused = RefusedError(
            "overloaded",
            f"too much traffic: {waiting} pictures wait already. Ask again in a moment."
            if not self.stalled(now)
            else "the batch that runs takes longer than it should. Ask again in a moment.",
            after=max(late, self._cost(order)),
        )
        gone: list[Order] = []
        # Nobody leaves before it is known that this is enough, and who is behind an order does not make it late.
        beside = self.queue.beside(order)
        others = chain(self.queue.below(order), beside)
        # Late beyond all that waits beside it: whoever left, it would be too late.
        if self._late(order, now, self._ahead(order.priority - 1, coming)) > 0:
            return refused
        while room < 0 or late > 0:
            victim = next(beside if late > 0 else others, None)
            if victim is None:
                return refused
            gone.append(victim)
            room += victim.rows
            if victim.priority == order.priority:
                ahead[self._least(victim)] -= victim.rows
                late = self._late(order, now, ahead)
        return gone

    def _late(self, order: Order, now: float, ahead: Mapping[float, int]) -> float:
        """Seconds by which an order would miss what it was promised if it and all ahead of it ran at their least."""
        rows, own = sum(ahead.values()) + order.rows, self.admissible(order, 0.0)
        wait = self._busy(now) + self._stall(now)
        # As if the whole queue were of one kind, then of the other, for the share that each has of it.
        kinds = Counter({own: order.rows}) + Counter(ahead)
        ends = sum(count / rows * self.controller.ends(budget, rows, now, wait) for budget, count in kinds.items())
        return now + ends - order.arrived - self.controller.planned(order)

    def _ahead(self, last: int, coming: Sequence[Order]) -> Counter[float]:
        """How many rows wait, or are coming, down to a priority, by their least budget."""
        found: Counter[float] = Counter()
        for priority, kinds in self.queue.kinds.items():
            if priority <= last:
                found.update(kinds)
        for order in coming:
            if order.priority <= last:
                found[self._least(order)] += order.rows
        return found

    def _busy(self, now: float) -> float:
        """Seconds until the batch that runs has ended; what it has taken beyond that it may take once more."""
        return 0.0 if self._busy_until is None else abs(self._busy_until - now)

    def _overrun(self, now: float) -> float:
        return 0.0 if self._busy_until is None else max(now - self._busy_until, 0.0)

    def _stall(self, now: float) -> float:
        """Seconds until batches are run again; a stall that lasts longer than was thought is never nearly over."""
        return 0.0 if self._stalled_until is None else max(self._stalled_until - now, self.policy.target)

    def _cost(self, order: Order) -> float:
        """Seconds that an order takes of the server at least."""
        return order.rows * self.times.least(self._least(order))

    def _least(self, order: Order) -> float:
        """The least declared budget above an order's floor."""
        budgets = self.times.budgets
        return budgets[bisect_left(budgets, order.floor)]


def _restarting(seconds: float) -> RefusedError:
    return RefusedError("restarting", "the network was lost and is being brought back; ask again.", after=seconds)


def _expired(order: Order, now: float) -> RefusedError:
    waited = 1e3 * (now - order.arrived)
    return RefusedError("expired", f"the deadline has passed: the request has waited for {waited:.0f} ms.", after=1.0)
