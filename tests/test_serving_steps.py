"""Loads that grow in steps to three times what the full network bears, where few pictures fit into the promise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import traffic
from traffic import Record, arrivals, server, simulate

from nestor.serving.controller import LEAST_MARGIN, Controller, Policy
from nestor.serving.order import Order
from nestor.serving.times import Times

FACTORS = (0.3, 1.0, 2.0, 3.0, 0.3)
# Seconds of a step, after which of them latencies count, and in which quality must be back.
STEP, SETTLE, BACK = 20.0, 5.0, 10.0
TENTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a batch takes: seconds for itself and for each row at full budget; and what is promised."""

    fixed: float
    each: float
    target: float
    step: float = STEP
    budgets: tuple[float, ...] = TENTHS

    @property
    def seconds(self) -> Callable[[float, int], float]:
        """Of a batch, by budget and rows."""
        return partial(traffic.seconds, fixed=self.fixed, each=self.each)

    def bears(self, budget: float, rows: int) -> float:
        """Rows a second in batches of so many."""
        return rows / self.seconds(budget, rows)

    def sent(self, *factors: float, seed: int) -> list[Order]:
        """Traffic in steps, as multiples of what the full network bears."""
        full = self.bears(1.0, 16)
        rates = [full * factor for factor in factors]
        return arrivals(lambda now: rates[min(int(now / self.step), len(rates) - 1)], self.step * len(rates), seed)


# Two cores, on which three pictures at full budget fill the promise; the same with smaller pictures, whose batches cost
# much for themselves; and a machine whose batches cost nearly all of it.
CORES = Machine(fixed=0.008, each=0.045, target=0.15)
SMALL = Machine(fixed=0.022, each=0.0205, target=0.15, budgets=(0.14, 0.2, *TENTHS[1:]))
WIDE = Machine(fixed=0.02, each=0.0015, target=0.1, budgets=(0.4, 0.6, 0.8, 1.0), step=8.0)


def run(
    machine: Machine,
    sent: list[Order],
    monkeypatch: pytest.MonkeyPatch,
    *,
    noise: float,
    slow: Callable[[float], float] = lambda now: 1.0,
) -> Record:
    monkeypatch.setattr(traffic, "seconds", machine.seconds)
    record = simulate(server(machine.budgets, target=machine.target), sent, noise=noise, slow=slow)
    assert record.latency.keys() | record.refused.keys() == {order.number for order in sent}
    return record


def between(sent: list[Order], begin: float, end: float) -> list[Order]:
    return [order for order in sent if begin <= order.arrived < end]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("noise", "quality"), [(0.05, 0.95), (0.2, 0.93)])
def test_every_load_that_can_be_borne_is_answered_in_time_and_quality_comes_back(
    noise: float, quality: float, seed: int, monkeypatch: pytest.MonkeyPatch
):
    sent = CORES.sent(*FACTORS, seed=seed)
    record = run(CORES, sent, monkeypatch, noise=noise)
    for step in range(len(FACTORS)):
        assert record.p95(between(sent, step * STEP + SETTLE, (step + 1) * STEP)) <= CORES.target
    # One in a hundred at the load that takes three quarters of what the least budget bears; else nobody, but for what
    # comes while a batch runs that was begun before the load rose.
    hard = between(sent, 3 * STEP, 4 * STEP)
    assert refused(record, hard) <= 0.01 * len(hard)
    assert len(record.refused) - refused(record, hard) <= 2
    assert record.mean(between(sent, SETTLE, STEP)) > quality
    assert record.mean(between(sent, 4 * STEP + BACK, 5 * STEP)) > quality


def refused(record: Record, sent: list[Order]) -> int:
    return sum(order.number in record.refused for order in sent)


@pytest.mark.parametrize(("slow", "share"), [(1.3, 0.82), (1.6, 0.72)])
def test_a_machine_slower_than_measured_still_serves_what_it_can(
    slow: float, share: float, monkeypatch: pytest.MonkeyPatch
):
    sent = CORES.sent(3.0, seed=0)
    record = run(CORES, sent, monkeypatch, noise=0.2, slow=lambda now: slow)
    settled = between(sent, SETTLE, STEP)
    assert record.p95(settled) <= CORES.target
    # What batches of three serve, less what batches of uneven length cost: larger ones would end too late.
    served = len(settled) - refused(record, settled)
    assert served > share * min(len(settled), CORES.bears(CORES.budgets[0], 3) / slow * (STEP - SETTLE))


def test_beyond_what_the_least_budget_bears_all_that_can_be_served_is(monkeypatch: pytest.MonkeyPatch):
    sent = CORES.sent(6.0, seed=0)
    record = run(CORES, sent, monkeypatch, noise=0.15)
    settled = between(sent, SETTLE, STEP)
    assert record.p95(settled) <= CORES.target
    served = len(settled) - refused(record, settled)
    assert served > 0.9 * CORES.bears(CORES.budgets[0], 6) * (STEP - SETTLE)
    assert {why.kind for why in record.refused.values()} == {"overloaded"}
    assert all(why.after is not None and 0 < why.after < 1 for why in record.refused.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_stay_large_and_quality_comes_back_where_traffic_slows_the_machine(
    seed: int, monkeypatch: pytest.MonkeyPatch
):
    sent = SMALL.sent(0.17, 1.7, 0.17, seed=seed)
    record = run(SMALL, sent, monkeypatch, noise=0.25, slow=lambda now: 1.35 if STEP < now < 2 * STEP else 1.15)
    busy, later = between(sent, STEP + SETTLE, 2 * STEP), between(sent, 2 * STEP + BACK, 3 * STEP)
    assert record.p95(busy) <= SMALL.target
    assert refused(record, busy) < 0.1 * len(busy)
    assert record.mean(later) > 0.85


def test_a_rush_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    sent = WIDE.sent(0.3, 1.0, 2.0, 0.3, seed=0)
    record = run(WIDE, sent, monkeypatch, noise=0.15)
    for step in range(4):
        assert record.p95(between(sent, step * WIDE.step + SETTLE, (step + 1) * WIDE.step)) <= WIDE.target
    assert not refused(record, between(sent, 0, 2 * WIDE.step))
    assert not refused(record, between(sent, 3 * WIDE.step + 1, 4 * WIDE.step))
    rush = between(sent, 2 * WIDE.step + SETTLE, 3 * WIDE.step)
    assert len(rush) - refused(record, rush) > 0.95 * WIDE.bears(0.4, 16) * (WIDE.step - SETTLE)


# Why that is so.


def test_how_carefully_is_planned_makes_no_batch_smaller(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(traffic, "seconds", CORES.seconds)
    controller = Controller(Policy(target=CORES.target), traffic.table(TENTHS))
    before = controller.size(TENTHS[0])
    for step in range(100):
        late = [Order(number=number, arrived=step - 1.5 * CORES.target) for number in range(30)]
        controller.answered(step, late)
    assert controller.margin == LEAST_MARGIN
    assert controller.size(TENTHS[0]) == before == 4


def test_of_batches_that_follow_each_other_one_is_expected_to_take_long():
    times = Times({(1.0, rows): 0.01 * rows for rows in (1, 2, 4)})
    for seconds in (0.02, 0.08) * 10:
        times.learn(1.0, 4, seconds)
    once, often = times.mean(1.0, 4), times.high(1.0, 4)
    assert often > 1.5 * once
    assert times.by(1.0, 4, 4) == often
    assert times.by(1.0, 8, 4) == pytest.approx(once + often)
    assert times.by(1.0, 9, 4) == pytest.approx(2 * once + times.high(1.0, 1))
    assert times.drain(1.0, 9, 4) == pytest.approx(2 * once + times.mean(1.0, 1))


def test_a_queue_is_priced_in_the_batches_that_it_will_run_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(traffic, "seconds", WIDE.seconds)
    scheduler = server(WIDE.budgets, target=WIDE.target)
    scheduler.offer(Order(number=0, arrived=0.0), 0.0)
    assert scheduler.take(0.0)[0] is not None
    admitted = 0
    while not scheduler.offer(Order(number=admitted + 1, arrived=0.0), 0.0):
        admitted += 1
    # One batch runs; two more end in time, and a third would not.
    one, full = WIDE.seconds(1.0, 1), scheduler.times.mean(0.4, 16)
    assert one + 2 * full < WIDE.target < one + 3 * full
    assert admitted == 32
