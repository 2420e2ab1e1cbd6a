"""Orders, and the queue in which they wait."""

import math

import pytest

from nestor.serving import queue as queues
from nestor.serving.order import HIGH, LOW, NORMAL, Order
from nestor.serving.queue import Queue


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
