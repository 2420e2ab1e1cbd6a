"""The scheduler against a clock that the tests hold: everybody gets exactly one answer, in time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import BUDGETS, SIZES, Record, arrivals, seconds, server, simulate

from nestor.serving.order import HIGH, LOW, NORMAL, Order, RefusedError
from nestor.serving.queue import Queue

CAPACITY = SIZES[-1] / seconds(1.0, SIZES[-1])
TARGET = 0.08


orders = st.builds(
    dict,
    gap=st.floats(0, 0.05),
    rows=st.integers(1, 6),
    key=st.sampled_from("abc"),
    priority=st.sampled_from([HIGH, NORMAL, LOW]),
    bounds=st.tuples(st.sampled_from(BUDGETS), st.sampled_from(BUDGETS)).map(sorted),
    deadline=st.none() | st.floats(0.001, 1.0),
)


def stream(drawn: list[dict]) -> list[Order]:
    found, now = [], 0.0
    for number, each in enumerate(drawn):
        now += each["gap"]
        floor, ceiling = each["bounds"]
        fields = {name: each[name] for name in ("rows", "key", "priority", "deadline")}
        found.append(Order(number=number, arrived=now, floor=floor, ceiling=ceiling, **fields))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(orders, max_size=60), st.integers(4, 40), st.floats(0.2, 5))
def test_nobody_is_lost_or_answered_twice_and_wishes_are_kept(drawn: list[dict], capacity: int, slow: float):
    sent = stream(drawn)
    record = simulate(server(capacity=capacity), sent, slow=lambda now: slow)
    # `simulate` asserts that nobody is answered twice.
    assert record.latency.keys() | record.refused.keys() == {order.number for order in sent}
    for batch in record.batches:
        assert batch.budget in BUDGETS
        assert all(order.floor <= batch.budget <= order.ceiling for order in batch.orders)
        assert batch.rows <= max(SIZES[-1], batch.orders[0].rows)
        assert all(batch.started - order.arrived < order.within(10.0) for order in batch.orders)
    in_order(record)


def in_order(record: Record) -> None:
    """Of one key and priority, nobody overtakes."""
    last: dict[tuple[str, int], int] = {}
    for order in (order for batch in record.batches for order in batch.orders):
        assert last.get((order.key, order.priority), -1) < order.number
        last[order.key, order.priority] = order.number


@settings(max_examples=30, deadline=None)
@given(st.lists(orders, min_size=1, max_size=30), st.booleans())
def test_closing_answers_or_refuses_everybody(drawn: list[dict], at_once: bool):
    sent = stream(drawn)
    scheduler, refused, served = server(), [], []
    for order in sent:
        refused += scheduler.offer(order, order.arrived)
    now = sent[-1].arrived
    refused += scheduler.close(at_once=at_once)
    late = Order(number=len(sent), arrived=now)
    [(who, why)] = scheduler.offer(late, now)
    assert (who, why.kind, why.after) == (late, "draining", 1.0)
    while len(scheduler.queue):
        batch, gone = scheduler.take(now)
        refused += gone
        if batch is not None:
            served += batch.orders
            scheduler.finish(batch, now := now + 0.001)
    assert sorted(order.number for order in [*served, *(order for order, _ in refused)]) == list(range(len(sent)))
    assert not (at_once and served)


def test_an_idle_server_refuses_nobody_and_a_full_one_says_when_to_come_back():
    scheduler = server(capacity=8)
    assert scheduler.offer(Order(number=0, arrived=0.0, rows=16), 0.0) == []
    batch, _ = scheduler.take(0.0)
    assert batch is not None
    refused: list[RefusedError] = []
    for number in range(1, 20):
        refused += [why for _, why in scheduler.offer(Order(number=number, arrived=0.001), 0.001)]
    assert scheduler.queue.rows <= 8
    assert {why.kind for why in refused} == {"overloaded"}
    assert all(why.after is not None and 0 < why.after < 1 for why in refused)


def test_who_is_coming_is_ahead_of_those_after_it_and_of_nobody_else():
    scheduler = server(capacity=8)
    orders = [Order(number=number, arrived=0.0, priority=HIGH if number == 9 else NORMAL) for number in range(10)]
    scheduler.coming |= {order.number: order for order in orders[:8]}
    for late in orders[8:]:
        refused = scheduler.refusal(late, 0.0)
        assert refused is not None
        assert str(refused).startswith("too much traffic: 8 pictures wait already")
    for order in orders[:8]:
        del scheduler.coming[order.number]
        assert scheduler.offer(order, 0.0) == []
    assert scheduler.offer(orders[8], 0.0) != []


def test_who_is_coming_makes_those_late_who_can_not_wait_for_it():
    scheduler = server(capacity=1000)
    soon = Order(number=100, arrived=0.0, deadline=TARGET)
    assert scheduler.refusal(soon, 0.0) is None
    scheduler.coming |= {number: Order(number=number, arrived=0.0) for number in range(99)}
    assert scheduler.refusal(soon, 0.0) is not None
    # Those of less priority are not ahead.
    assert scheduler.refusal(Order(number=100, arrived=0.0, priority=HIGH, deadline=TARGET), 0.0) is None


def test_a_full_queue_makes_room_for_who_asks_for_less_and_puts_everyone_back_if_that_is_not_enough():
    scheduler = server(capacity=4)
    greedy = [Order(number=i, arrived=0.0, key="greedy", deadline=5.0) for i in range(4)]
    for order in greedy:
        assert scheduler.offer(order, 0.0) == []
    [(who, why)] = scheduler.offer(Order(number=5, arrived=0.0, key="modest", deadline=5.0), 0.0)
    assert (who, why.kind) == (greedy[3], "displaced")
    wide = Order(number=6, arrived=0.0, key="wide", rows=3, deadline=5.0)
    assert [(who, why.kind) for who, why in scheduler.offer(wide, 0.0)] == [(wide, "overloaded")]
    assert [order.number for order in scheduler.queue] == [0, 1, 2, 5]


def test_who_would_be_late_in_an_empty_queue_is_refused_before_anybody_leaves(monkeypatch: pytest.MonkeyPatch):
    scheduler = server(capacity=1000, target=60.0, patience=100.0)
    lower = [Order(number=i, arrived=0.0, key=str(i % 7), priority=1 + i % 3) for i in range(900)]
    assert all(scheduler.offer(order, 0.0) == [] for order in lower)
    before, compared = list(scheduler.queue), []
    monkeypatch.setattr(Queue, "remove", lambda queue, order: compared.append(order))
    for rows, deadline in ((1, 1e-4), (16, 1e-4), (16, 0.05)):
        hopeless = Order(number=999, arrived=0.0, priority=HIGH, rows=rows, deadline=deadline)
        assert [(who, why.kind) for who, why in scheduler.offer(hopeless, 0.0)] == [(hopeless, "overloaded")]
    assert not compared
    assert list(scheduler.queue) == before


def test_who_is_late_for_those_beside_it_does_not_drive_out_those_behind_it():
    scheduler = server(capacity=40)
    ahead = [Order(number=i, arrived=0.0, key="a", deadline=60.0, priority=HIGH) for i in range(30)]
    behind = [Order(number=50 + i, arrived=0.0, key="c", priority=LOW, deadline=60.0) for i in range(5)]
    for order in (*ahead, *behind):
        assert scheduler.offer(order, 0.0) == []
    gone = scheduler.offer(Order(number=99, arrived=0.0, key="b", priority=HIGH, deadline=0.08), 0.0)
    assert {why.kind for _, why in gone} == {"displaced"}
    left = [order.number for order, _ in gone]
    # The newest of whoever waits with most, and no more of them than need be.
    assert left == [29 - i for i in range(len(left))]
    assert 0 < len(left) < 30
    assert {order.number for order in scheduler.queue} >= {order.number for order in behind} | {99}


def test_a_deadline_that_has_passed_is_told_so():
    scheduler = server()
    scheduler.offer(Order(number=0, arrived=0.0), 0.0)
    batch, _ = scheduler.take(0.0)
    assert batch is not None
    scheduler.offer(Order(number=1, arrived=0.0, deadline=0.05), 0.0)
    scheduler.finish(batch, 0.06)
    nothing, [(order, why)] = scheduler.take(0.06)
    assert nothing is None
    assert (order.number, why.kind) == (1, "expired")
    assert "waited for 60 ms" in str(why)


def test_a_budget_that_is_not_declared_is_named():
    scheduler = server()
    with pytest.raises(ValueError, match=r"the budget must be one of 0.25, 0.3, .*, 1; got 0.33"):
        scheduler.admissible(Order(number=0, arrived=0.0, floor=0.33, ceiling=0.33), 1.0)
    with pytest.raises(ValueError, match=r"got 0.31 to 0.33"):
        scheduler.admissible(Order(number=0, arrived=0.0, floor=0.31, ceiling=0.33), 1.0)


def test_a_stall_is_told_to_whoever_cannot_wait_for_its_end():
    scheduler = server(capacity=8)
    for number, deadline in enumerate((None, 1.0, 5.0)):
        assert scheduler.offer(Order(number=number, arrived=0.0, deadline=deadline), 0.0) == []
    assert [(order.number, why.kind, why.after) for order, why in scheduler.stall(0.0, 2.0)] == [
        (0, "restarting", 2.0),
        (1, "restarting", 2.0),
    ]
    assert scheduler.stalled(0.0)
    [(_, why)] = scheduler.offer(Order(number=3, arrived=0.5), 0.5)
    assert (why.kind, why.after) == ("restarting", 1.5)
    # It takes longer than was thought, so that it is not nearly over.
    [(_, why)] = scheduler.offer(Order(number=4, arrived=3.0), 3.0)
    assert (why.kind, why.after) == ("restarting", TARGET)
    assert scheduler.offer(Order(number=5, arrived=3.0, deadline=1.0), 3.0) == []
    scheduler.resume()
    assert scheduler.offer(Order(number=6, arrived=3.0), 3.0) == []
    batch, gone = scheduler.take(3.0)
    assert batch is not None
    assert not gone
    assert {order.number for order in batch.orders} == {2, 5, 6}


def test_what_a_batch_takes_beyond_its_time_is_expected_once_more_of_it():
    scheduler = server()
    scheduler.offer(Order(number=0, arrived=0.0), 0.0)
    batch, _ = scheduler.take(0.0)
    assert batch is not None
    over = seconds(1.0, 1)
    assert scheduler.offer(Order(number=1, arrived=over), over) == []
    waiting = Order(number=2, arrived=over + 0.5, deadline=0.45)
    assert [why.kind for _, why in scheduler.offer(waiting, over + 0.5)] == ["overloaded"]
    assert not scheduler.stalled(over + 0.9)
    assert scheduler.stalled(over + 1.1)
    assert scheduler.due() == pytest.approx(over + 10.0)
    scheduler.finish(batch, over + 1.2, answered=False)
    assert not scheduler.stalled(over + 1.2)


def test_a_batch_that_failed_teaches_nothing():
    scheduler = server()
    scheduler.offer(Order(number=0, arrived=0.0), 0.0)
    batch, _ = scheduler.take(0.0)
    assert batch is not None
    scheduler.finish(batch, 30.0, answered=False)
    assert scheduler.times.mean(1.0, 1) == pytest.approx(seconds(1.0, 1))


# What the controller is for.


def held(record: Record, sent: list[Order]) -> bool:
    """Whether a server kept its promise and refused nobody."""
    return record.p95(sent) <= TARGET and not record.refused


@pytest.mark.parametrize("load", [0.3, 0.8, 1.2, 2.0, 3.0])
def test_the_promise_holds_and_little_quality_is_lost_against_the_best_constant_budget(load: float):
    sent = arrivals(lambda now: load * CAPACITY, 9.0)
    after = [order for order in sent if order.arrived > 3]
    elastic = simulate(server(), sent)
    assert not elastic.refused
    assert elastic.p95(after) <= TARGET
    constant = next(budget for budget in reversed(BUDGETS) if held(simulate(server((budget,)), sent), after))
    assert elastic.mean(after) >= 0.9 * constant


def test_three_times_the_load_breaks_the_full_network_and_bends_the_elastic_one():
    def load(now: float) -> float:
        return CAPACITY * (0.3 if now < 4 else 3.0 if now < 10 else 0.3)

    sent = arrivals(load, 18.0)
    quiet, busy, later = ([o for o in sent if a < o.arrived < b] for a, b in ((1, 4), (6, 10), (14, 18)))
    elastic = simulate(server(), sent)
    assert not elastic.refused
    assert all(elastic.p95(part) <= TARGET for part in (quiet, busy, later))
    assert elastic.mean(quiet) > 0.98
    assert elastic.mean(busy) < 0.4
    assert elastic.mean(later) > 0.98
    full = simulate(server((1.0,)), sent)
    assert len(full.refused) > 0.5 * len(busy)
    patient = simulate(server((1.0,), target=60.0, patience=100.0), sent)
    assert patient.p95(busy) > 10 * TARGET


def test_beyond_the_least_budget_the_rest_is_refused_and_who_is_admitted_is_in_time():
    sent = arrivals(lambda now: 6 * CAPACITY, 5.0)
    after = [order for order in sent if order.arrived > 2]
    record = simulate(server(), sent)
    assert record.p95(after) <= TARGET
    assert record.mean(after) < 0.3
    assert {why.kind for why in record.refused.values()} == {"overloaded"}
    most = SIZES[-1] / seconds(BUDGETS[0], SIZES[-1])
    answered = sum(order.number in record.latency for order in after)
    assert answered > 0.8 * most * 3


def test_a_machine_slower_than_measured_is_found_out():
    sent = arrivals(lambda now: 0.8 * CAPACITY, 12.0)
    after = [order for order in sent if order.arrived > 4]
    record = simulate(server(), sent, slow=lambda now: 1.6)
    assert record.p95(after) <= TARGET
    assert len(record.refused) < 0.01 * len(sent)


def test_shares_stay_even_when_one_key_asks_for_everything():
    rare = arrivals(lambda now: 0.5 * CAPACITY, 4.0, seed=1)
    flood = arrivals(lambda now: 8 * CAPACITY, 4.0, seed=2)
    sent = [Order(number=i, arrived=o.arrived, key="rare") for i, o in enumerate(rare)]
    sent += [Order(number=len(rare) + i, arrived=o.arrived, key="flood") for i, o in enumerate(flood)]
    record = simulate(server(), sorted(sent, key=lambda order: order.arrived))
    refused = sum(order.key == "rare" for order in sent if order.number in record.refused)
    assert refused < 0.02 * len(rare)
    assert sum(order.key == "flood" for order in sent if order.number in record.refused) > 0.3 * len(flood)
