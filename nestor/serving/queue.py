"""The queue: by priority, evenly among keys, in order within a key; bounded by whoever fills it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nestor.serving.order import Order


@dataclass(eq=False)
class _Lane:
    """What one key asks for at one priority, in order of arrival."""

    priority: int
    key: str
    tag: float
    orders: deque[Order] = field(default_factory=deque)

    @property
    def place(self) -> tuple[int, float, float, int]:
        head = self.orders[0]
        return self.priority, self.tag, head.arrived, head.number


class Queue:
    """Orders that wait. Of each priority, the key that was served least comes first (start-time fair queueing)."""

    def __init__(self) -> None:
        self.rows = 0
        self._lanes: dict[tuple[int, str], _Lane] = {}
        self._reached: dict[int, float] = {}

    def __iter__(self) -> Iterator[Order]:
        for lane in self._lanes.values():
            yield from lane.orders

    def __len__(self) -> int:
        return sum(len(lane.orders) for lane in self._lanes.values())

    def push(self, order: Order) -> None:
        """Put an order behind those of its key and priority."""
        name = (order.priority, order.key)
        if name not in self._lanes:
            # A key that was away starts level with the others: absence earns no credit.
            self._lanes[name] = _Lane(*name, tag=self._reached.get(order.priority, 0.0))
        self._lanes[name].orders.append(order)
        self.rows += order.rows

    def head(self) -> Order | None:
        """The order that comes next; None when nobody waits."""
        lane = min(self._lanes.values(), key=lambda lane: lane.place, default=None)
        return None if lane is None else lane.orders[0]

    def take(self, rows: int, accept: Callable[[Order], bool]) -> tuple[Order, ...]:
        """Take the next order, whatever its size, and those after it that are accepted and fit into so many rows.

        Whoever is passed over is passed over with all that stands behind it in its lane, so that order is kept.
        """
        taken: list[Order] = []
        total, open_lanes = 0, list(self._lanes.values())
        while open_lanes:
            lane = min(open_lanes, key=lambda lane: lane.place)
            order = lane.orders[0]
            if taken and (total + order.rows > rows or not accept(order)):
                open_lanes.remove(lane)
                continue
            self._reached[lane.priority] = max(lane.tag, self._reached.get(lane.priority, 0.0))
            lane.tag += order.rows
            self._drop(lane, order)
            taken.append(order)
            total += order.rows
            if not lane.orders:
                open_lanes.remove(lane)
        return tuple(taken)

    def remove(self, order: Order) -> None:
        """Take an order out of turn.

        Raises:
            ValueError: it does not wait.
        """
        lane = self._lanes.get((order.priority, order.key))
        if lane is None or order not in lane.orders:
            raise ValueError(f"order {order.number} does not wait.")
        self._drop(lane, order)

    def victim(self, order: Order) -> Order | None:
        """Who has to leave before this one is turned away: None, where nobody has.

        The newest order of the lowest priority, if that is lower than the newcomer's; else, of the newcomer's own, the
        newest of the key that waits with most rows, if that is more than the newcomer's key would then wait with.
        """
        lowest = max((lane.priority for lane in self._lanes.values()), default=order.priority)
        if lowest < order.priority:
            return None
        lanes = [lane for lane in self._lanes.values() if lane.priority == lowest]
        waiting = {id(lane): sum(each.rows for each in lane.orders) for lane in lanes}
        heaviest = max(lanes, key=lambda lane: waiting[id(lane)], default=None)
        if heaviest is None:
            return None
        own = self._lanes.get((order.priority, order.key))
        mine = order.rows + sum(each.rows for each in own.orders) if own is not None else order.rows
        newest = heaviest.orders[-1]
        if lowest > order.priority or waiting[id(heaviest)] - newest.rows >= mine:
            return newest
        return None

    def _drop(self, lane: _Lane, order: Order) -> None:
        if lane.orders[0] is order:
            lane.orders.popleft()
        else:
            lane.orders.remove(order)
        self.rows -= order.rows
        if not lane.orders:
            del self._lanes[lane.priority, lane.key]
