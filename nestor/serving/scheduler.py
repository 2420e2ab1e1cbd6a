"""Queue and controller together: what is admitted, what runs next, and that everybody gets exactly one answer."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nestor.serving.controller import Controller
from nestor.serving.order import RefusedError
from nestor.serving.queue import Queue

if TYPE_CHECKING:
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


Refusals = list[tuple["Order", RefusedError]]


class Scheduler:
    """Decides; it neither waits, nor runs anything, nor looks at a clock. One thread at a time.

    Every order that is offered comes back once: in a batch, or refused by `offer`, `take` or `close`.
    """

    def __init__(self, policy: Policy, times: Times):
        self.policy, self.controller, self.queue = policy, Controller(policy, times), Queue()
        self.closed = False
        self._busy_until: float | None = None
        self._stalled_until: float | None = None

    @property
    def stalled(self) -> bool:
        """Whether nothing can be run for a while."""
        return self._stalled_until is not None

    @property
    def times(self) -> Times:
        """How long batches take."""
        return self.controller.times

    @times.setter
    def times(self, times: Times) -> None:
        # Another network of the same budgets begins with what was measured of it.
        self.controller.times = times

    def refusal(self, order: Order, now: float) -> RefusedError | None:
        """What an order would be told if it were offered now and nobody made way for it."""
        if self.closed:
            return RefusedError("draining", "the server is stopping; ask another one, or again later.", after=1.0)
        if order.within(self.policy.patience) <= now - order.arrived:
            return _expired(order, now)
        if self._stalled_until is not None:
            wait = self._stall(now)
            if order.within(self.policy.target) <= now - order.arrived + wait:
                return _restarting(wait)
        elif self._busy_until is None and not len(self.queue):
            return None
        room, late = self.policy.capacity - self.queue.rows - order.rows, self._late(order, now)
        if room >= 0 and late <= 0:
            return None
        return RefusedError(
            "overloaded",
            f"too much traffic: {self.queue.rows} pictures wait already. Ask again in a moment.",
            after=max(late, self._cost(order)),
        )

    def offer(self, order: Order, now: float) -> Refusals:
        """Queue an order; returns who was refused for that: nobody, others that made way, or the order itself."""
        self.controller.arrive(now, order.rows)
        gone: list[Order] = []
        while (refused := self.refusal(order, now)) is not None:
            victim = self.queue.victim(order) if refused.kind == "overloaded" else None
            if victim is None:
                # In reverse, which gives everyone their old place.
                for each in reversed(gone):
                    self.queue.push(each)
                return [(order, refused)]
            self.queue.remove(victim)
            gone.append(victim)
        self.queue.push(order)
        message = "too much traffic: a request of higher priority, or of who asks for less, took this place."
        return [(each, RefusedError("displaced", message, after=self._cost(each))) for each in gone]

    def take(self, now: float) -> tuple[Batch | None, Refusals]:
        """The next batch, if anybody waits, and those who no longer do."""
        refused = self.expire(now)
        head = self.queue.head()
        if head is None:
            return None, refused
        margin = self.controller.margin
        slacks = sorted(
            order.arrived + margin * order.within(self.policy.target) - now
            for order in self.queue
            for _ in range(order.rows)
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
            shares = ((now - order.arrived) / order.within(self.policy.target) for order in batch.orders)
            self.controller.answered(now, shares)
        if not len(self.queue):
            self.controller.idle(now)

    def expire(self, now: float) -> Refusals:
        """Refuse those whose deadline has passed."""
        expired = [order for order in self.queue if order.within(self.policy.patience) <= now - order.arrived]
        for order in expired:
            self.queue.remove(order)
        return [(order, _expired(order, now)) for order in expired]

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

    def _late(self, order: Order, now: float) -> float:
        """Seconds by which an order would miss what it was promised if all ahead of it ran at their least."""
        ahead = sum(self._cost(other) for other in self.queue if other.priority <= order.priority)
        ahead += 0.0 if self._busy_until is None else max(self._busy_until - now, 0.0)
        ahead += self._stall(now)
        own = self.times.high(self.admissible(order, 0.0), order.rows)
        return now + ahead + own - order.arrived - self.controller.margin * order.within(self.policy.target)

    def _stall(self, now: float) -> float:
        """Seconds until batches are run again; a stall that lasts longer than was thought is never nearly over."""
        return 0.0 if self._stalled_until is None else max(self._stalled_until - now, self.policy.target)

    def _cost(self, order: Order) -> float:
        """Seconds that an order takes of the server at least."""
        budgets = self.times.budgets
        return order.rows * self.times.least(budgets[bisect_left(budgets, order.floor)])


def _restarting(seconds: float) -> RefusedError:
    return RefusedError("restarting", "the network was lost and is being brought back; ask again.", after=seconds)


def _expired(order: Order, now: float) -> RefusedError:
    waited = 1e3 * (now - order.arrived)
    return RefusedError("expired", f"the deadline has passed: the request has waited for {waited:.0f} ms.", after=1.0)
