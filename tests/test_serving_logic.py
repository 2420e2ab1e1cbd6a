"""Queue, service times, controller and scheduler against a clock that the tests hold."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import BUDGETS, SIZES, Record, arrivals, seconds, server, simulate, table

from nestor.serving import queue as queues
from nestor.serving.controller import Controller, Policy
from nestor.serving.order import HIGH, LOW, NORMAL, Order, RefusedError
from nestor.serving.queue import Queue
from nestor.serving.times import Times

CAPACITY = SIZES[-1] / seconds(1.0, SIZES[-1])
TARGET = 0.08


def queue_of(*orders: Order) -> Queue:
    queue = Queue()
    for order in orders:
        queue.push(order)
    return queue


def numbers(orders: tuple[Order, ...]) -> list[int]:
    return [order.number for order in orders]


def anyone(order: Order) -> bool:
    return True


# The queue.


def test_priority_comes_first_and_order_is_kept_within_it():
    queue = queue_of(*(Order(number=i, arrived=i, priority=p) for i, p in enumerate([LOW, NORMAL, HIGH, NORMAL, HIGH])))
    assert numbers(queue.take(9, anyone)) == [2, 4, 1, 3, 0]
    assert queue.rows == 0
    assert queue.head() is None


def test_keys_take_turns_however_many_each_has_sent():
    greedy = [Order(number=i, arrived=0, key="greedy") for i in range(6)]
    modest = [Order(number=10 + i, arrived=1, key="modest") for i in range(3)]
    queue = queue_of(*greedy, *modest)
    assert numbers(queue.take(6, anyone)) == [0, 10, 1, 11, 2, 12]


def test_a_key_that_was_away_has_earned_no_credit():
    queue = queue_of(*(Order(number=i, arrived=i, key="steady") for i in range(8)))
    queue.take(4, anyone)
    for i in range(3):
        queue.push(Order(number=20 + i, arrived=20 + i, key="new"))
    assert numbers(queue.take(4, anyone)) == [20, 4, 21, 5]


def test_fair_shares_count_pictures_not_requests():
    wide = [Order(number=i, arrived=0, key="wide", rows=4) for i in range(2)]
    narrow = [Order(number=10 + i, arrived=1, key="narrow") for i in range(6)]
    assert numbers(queue_of(*wide, *narrow).take(16, anyone)) == [0, 10, 11, 12, 13, 1, 14, 15]


def test_the_next_order_goes_whatever_its_size_and_whoever_is_passed_over_keeps_the_lane_in_order():
    queue = queue_of(
        Order(number=0, arrived=0, key="a", rows=5),
        Order(number=1, arrived=1, key="b", rows=3),
        Order(number=2, arrived=2, key="b", rows=1),
        Order(number=3, arrived=3, key="c", rows=1),
    )
    assert numbers(queue.take(4, anyone)) == [0]
    # 1 fits and 2 does not; 3 would, and stands in another lane.
    assert numbers(queue.take(3, lambda order: order.number != 1)) == [1]
    assert numbers(queue.take(2, anyone)) == [3, 2]


def test_who_has_to_make_way():
    heavy = [Order(number=i, arrived=i, key="heavy") for i in range(3)]
    light = Order(number=9, arrived=9, key="light")
    queue = queue_of(*heavy, light)
    assert list(queue.beside(Order(number=10, arrived=10, key="heavy"))) == []
    assert list(queue.beside(Order(number=10, arrived=10, key="light"))) == [heavy[2]]
    assert list(queue.beside(Order(number=10, arrived=10, key="other"))) == [heavy[2], heavy[1]]
    assert list(queue.beside(Order(number=10, arrived=10, key="other", rows=3))) == []
    assert list(queue.below(Order(number=10, arrived=10, key="other"))) == []
    assert list(queue.below(Order(number=10, arrived=10, key="heavy", priority=HIGH))) == [
        *heavy[:0:-1],
        heavy[0],
        light,
    ]
    assert len(queue) == queue.rows == 4
    assert list(Queue().beside(light)) == []


def test_a_key_that_keeps_one_wide_request_waiting_gets_no_more_than_its_share():
    queue, given = Queue(), {"wide": 0, "backlogged": 0}
    for i in range(40):
        queue.push(Order(number=1000 + i, arrived=0, key="backlogged", rows=16))
    for turn in range(20):
        queue.push(Order(number=turn, arrived=turn, key="wide", rows=16))
        for order in queue.take(16, anyone):
            given[order.key] += order.rows
        # One request of it waits, no more.
        for order in [each for each in queue if each.key == "wide"][1:]:
            queue.remove(order)
    assert given == {"wide": 160, "backlogged": 160}


def test_taking_back_what_was_asked_does_not_clear_the_account():
    queue = queue_of(*(Order(number=i, arrived=0, key="steady", rows=4) for i in range(4)))
    queue.push(Order(number=10, arrived=0, key="fickle", rows=8))
    assert numbers(queue.take(4, anyone)) == [0]
    assert numbers(queue.take(8, anyone)) == [10]
    for number in (11, 12):
        again = Order(number=number, arrived=1, key="fickle", rows=8)
        queue.push(again)
        queue.remove(again)
    queue.push(Order(number=13, arrived=2, key="fickle", rows=8))
    assert numbers(queue.take(8, anyone)) == [1, 2]


def test_keys_without_end_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queues, "KEYS", 8)
    queue = Queue()
    for number in range(100):
        queue.push(Order(number=number, arrived=number, key=str(number), rows=1 + number % 3))
        queue.take(1, anyone)
        assert len(queue._paid) <= 8


def test_taking_out_of_turn():
    first, second = (Order(number=i, arrived=i) for i in range(2))
    queue = queue_of(first, second)
    queue.remove(second)
    assert (list(queue), queue.rows) == ([first], 1)
    with pytest.raises(ValueError, match="order 1 does not wait"):
        queue.remove(second)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "at least 1 picture; got 0"),
        ({"priority": 4}, r"priority must be 1 \(first\), 2 or 3 \(last\); got 4"),
        ({"floor": 0.6, "ceiling": 0.5}, "0 <= floor <= ceiling <= 1; got 0.6 and 0.5"),
        ({"floor": math.nan}, "floor <= ceiling"),
        ({"deadline": 0.0}, "a deadline must be above 0 and finite; got 0.0"),
        ({"deadline": math.inf}, "a deadline must be above 0 and finite; got inf"),
    ],
)
def test_orders_out_of_bounds_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Order(number=0, arrived=0.0, **fields)


# Service times.


def test_times_are_what_was_measured_and_lines_between():
    times = Times({(1.0, 1): 1.0, (1.0, 2): 1.5, (1.0, 4): 2.5})
    assert [times.mean(1.0, rows) for rows in (1, 2, 3, 4, 6)] == pytest.approx([1, 1.5, 2, 2.5, 3.5])
    assert times.least(1.0) == pytest.approx(0.625)
    assert times.high(1.0, 2) > 1.5


def test_a_machine_that_became_slow_is_noticed_at_every_budget():
    times = table()
    before = {budget: times.mean(budget, 16) for budget in BUDGETS}
    for _ in range(60):
        times.learn(0.5, 4, 2 * seconds(0.5, 4))
    assert times.mean(0.5, 4) == pytest.approx(2 * seconds(0.5, 4), rel=0.05)
    assert all(1.3 < times.mean(budget, 16) / before[budget] < 2.1 for budget in BUDGETS)


def test_one_slow_spell_does_not_condemn_a_budget():
    times = table()
    for _ in range(3):
        times.learn(1.0, 8, 20 * seconds(1.0, 8))
    assert times.mean(1.0, 8) > 1.5 * seconds(1.0, 8)
    for _ in range(200):
        times.learn(0.5, 4, seconds(0.5, 4))
    assert times.mean(1.0, 8) == pytest.approx(seconds(1.0, 8), rel=0.1)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({}, "every budget at every size"),
        ({(1.0, 1): 1.0, (1.0, 2): 1.0, (0.5, 1): 1.0}, "every budget at every size"),
        ({(1.0, 1): 0.0}, "above 0 and finite"),
        ({(1.0, 1): math.inf}, "above 0 and finite"),
    ],
)
def test_tables_with_gaps_are_refused(measured: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Times(measured)


@pytest.mark.parametrize("name", ["target", "capacity", "patience", "settle"])
def test_a_policy_out_of_bounds_is_refused(name: str):
    with pytest.raises(ValueError, match=f"{name} must be above 0 and finite; got 0"):
        Policy(**{name: 0})


# The controller.


def test_a_lone_request_gets_everything():
    controller = Controller(Policy(), table())
    controller.arrive(0.0, 1)
    assert controller.decide(0.0, [0.07]) == (1.0, 1)


def test_a_long_queue_is_answered_at_once_with_less():
    controller = Controller(Policy(), table())
    budget, _ = controller.decide(0.0, [0.06] * 12)
    assert budget < 0.5
    # What is needed for the twelve, and not less.
    above = BUDGETS[BUDGETS.index(budget) + 1]
    assert controller.times.high(budget, 12) <= 0.06 < controller.times.high(above, 12)


def test_going_up_takes_a_step_at_a_time_and_waits_for_each():
    controller = Controller(Policy(settle=0.5), table())
    controller.decide(0.0, [0.03] * 16)
    assert controller.level == 0
    seen = []
    for step in range(40):
        controller.decide(1 + 0.125 * step, [0.07])
        seen.append(controller.level)
    assert seen == [min(step // 4, len(BUDGETS) - 1) for step in range(40)]


def test_a_spell_without_traffic_gives_everything_back():
    scheduler = server()
    for number in range(20):
        scheduler.offer(Order(number=number, arrived=0.0, deadline=0.15), 0.0)
    now = 0.0
    while (batch := scheduler.take(now)[0]) is not None:
        now += seconds(batch.budget, batch.rows)
        scheduler.finish(batch, now)
    assert scheduler.controller.budget < 1
    scheduler.offer(Order(number=99, arrived=now + 60), now + 60)
    batch, _ = scheduler.take(now + 60)
    assert batch is not None
    assert batch.budget == 1.0


def test_who_cannot_be_saved_does_not_cost_the_others_their_quality():
    controller = Controller(Policy(), table())
    assert controller.decide(0.0, [-5.0, 0.07])[0] == 1.0


def answers(now: float, share: float) -> list[Order]:
    """Orders that are answered now, after so large a share of what was promised."""
    return [Order(number=number, arrived=now - share * TARGET) for number in range(30)]


def test_latencies_above_the_promise_make_the_plan_more_careful_and_it_recovers():
    controller = Controller(Policy(), table())
    before = controller.margin
    for step in range(10):
        controller.answered(step, answers(step, 1.3))
    assert controller.margin < 0.7 * before
    for step in range(10, 300):
        controller.answered(step, answers(step, 0.5))
    assert controller.margin > before
    # Who came before plans changed says nothing of them.
    for _ in range(10):
        controller.answered(301, answers(300, 1.3))
    assert controller.margin > 0.8 * before
    # Whoever named a deadline gains nothing by an answer after it.
    assert controller.planned(Order(number=0, arrived=0.0)) > TARGET
    assert controller.planned(Order(number=0, arrived=0.0, deadline=0.05)) == 0.05


def test_a_sudden_rise_is_believed_soon_and_chance_is_not():
    def known(gap: float, count: int, controller: Controller, begin: float) -> float:
        for step in range(count):
            controller.arrive(begin + gap * step, 1)
        return controller.rate(begin + gap * (count - 1))

    controller = Controller(Policy(target=0.08), table())
    assert known(1 / 30, 150, controller, 0.0) == pytest.approx(30, rel=0.1)
    # Two or three at once are nothing special at this rate.
    assert known(0.001, 3, controller, 5.0) < 40
    assert known(1 / 300, 24, controller, 6.0) > 200
    assert known(1 / 30, 60, controller, 6.1) < 60


# The scheduler: everybody gets exactly one answer.

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
