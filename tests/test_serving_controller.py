"""Service times, and the controller that sets the budget by them."""

import math

import pytest
from traffic import BUDGETS, seconds, server, table

from nestor.serving.controller import Controller, Policy
from nestor.serving.order import Order
from nestor.serving.times import Times

TARGET = 0.08


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
