"""Simulated traffic against the scheduler: a clock that jumps, and batches that take what a formula says."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from nestor.serving.controller import Policy
from nestor.serving.order import Order, RefusedError
from nestor.serving.scheduler import Batch, Scheduler
from nestor.serving.times import Times

SIZES = (1, 2, 4, 8, 16)
BUDGETS = (0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)


def seconds(budget: float, rows: int, fixed: float = 0.001, each: float = 0.01) -> float:
    """What a batch takes: something for itself, and for each row in proportion to the budget."""
    return fixed + each * rows * (0.02 + 0.98 * budget)


def table(budgets: tuple[float, ...] = BUDGETS, scale: float = 1.0) -> Times:
    """Times as the warm-up would measure them on a machine that is `scale` times as slow as it turns out to be."""
    return Times({(budget, rows): scale * seconds(budget, rows) for budget in budgets for rows in SIZES})


def arrivals(load: Callable[[float], float], until: float, seed: int = 0) -> list[Order]:
    """Single pictures at random moments, `load(t)` of them a second at second t."""
    rng, now, orders = random.Random(seed), 0.0, []
    peak = max(load(0.25 * step) for step in range(int(4 * until) + 1))
    while (now := now + rng.expovariate(peak)) < until:
        if rng.random() < load(now) / peak:
            orders.append(Order(number=len(orders), arrived=now))
    return orders


@dataclass
class Record:
    """What became of every order."""

    batches: list[Batch] = field(default_factory=list)
    latency: dict[int, float] = field(default_factory=dict)
    budget: dict[int, float] = field(default_factory=dict)
    refused: dict[int, RefusedError] = field(default_factory=dict)

    def p95(self, orders: list[Order]) -> float:
        """Of those that were answered."""
        taken = sorted(self.latency[order.number] for order in orders if order.number in self.latency)
        return taken[int(0.95 * len(taken))]

    def mean(self, orders: list[Order]) -> float:
        """Mean budget of those that were answered."""
        given = [self.budget[order.number] for order in orders if order.number in self.budget]
        return sum(given) / len(given)


def simulate(
    scheduler: Scheduler,
    orders: list[Order],
    *,
    slow: Callable[[float], float] = lambda now: 1.0,
    noise: float = 0.05,
    seed: int = 1,
) -> Record:
    """One server: it takes a batch as soon as it has ended the last one and somebody waits."""
    rng, record, waiting = random.Random(seed), Record(), list(reversed(orders))
    running: tuple[float, Batch] | None = None

    def refuse(refusals: list[tuple[Order, RefusedError]]) -> None:
        for order, why in refusals:
            assert order.number not in record.refused
            assert order.number not in record.latency
            record.refused[order.number] = why

    while waiting or running or len(scheduler.queue):
        if running is not None and (not waiting or running[0] <= waiting[-1].arrived):
            now, batch = running
            scheduler.finish(batch, now)
            for order in batch.orders:
                assert order.number not in record.latency
                assert order.number not in record.refused
                record.latency[order.number] = now - order.arrived
                record.budget[order.number] = batch.budget
            running = None
        else:
            order = waiting.pop()
            now = order.arrived
            refuse(scheduler.offer(order, now))
        if running is None:
            batch, gone = scheduler.take(now)
            refuse(gone)
            if batch is not None:
                record.batches.append(batch)
                took = seconds(batch.budget, batch.rows) * slow(now) * rng.lognormvariate(0, noise)
                running = now + took, batch
    return record


def server(budgets: tuple[float, ...] = BUDGETS, *, scale: float = 1.0, **policy: float) -> Scheduler:
    """A scheduler with a target of 80 ms, eight pictures at full budget."""
    return Scheduler(Policy(**policy), table(budgets, scale))  # pyright: ignore[reportArgumentType]
