"""The queue: by priority, evenly among keys, in order within a key; bounded by whoever fills it."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nestor.serving.order import Order

# Keys that are remembered though nothing of theirs waits; beyond that those go that have most nearly paid.
KEYS = 4096


@dataclass(eq=False)
class _Lane:
    """What one key asks for at one priority, in order of arrival."""

    priority: int
    key: str
    tag: float
    rows: int = 0
    orders: deque[Order] = field(default_factory=deque)

    @property
    def place(self) -> tuple[int, float, float, int]:
        head = self.orders[0]
        return self.priority, self.tag, head.arrived, head.number


class Queue:
    """Orders that wait. Of each priority, the key that was served least comes first (start-time fair queueing).

    Args:
        kind: what orders are told apart by where rows are counted; by default their floor.
    """

    def __init__(self, kind: Callable[[Order], float] = lambda order: order.floor) -> None:
        self.rows = 0
        self._kind, self._length = kind, 0
        self._kinds: dict[int, Counter[float]] = {}
        self._lanes: dict[tuple[int, str], _Lane] = {}
        self._reached: dict[int, float] = {}
        self._paid: dict[tuple[int, str], float] = {}

    def __iter__(self) -> Iterator[Order]:
        for lane in self._lanes.values():
            yield from lane.orders

    def __len__(self) -> int:
        return self._length

    @property
    def kinds(self) -> Mapping[int, Mapping[float, int]]:
        """How many rows wait, by priority and kind."""
        return self._kinds

    def push(self, order: Order) -> None:
        """Put an order behind those of its key and priority."""
        name = (order.priority, order.key)
        if name not in self._lanes:
            # A key that was away starts level with the others: absence earns no credit, and pays for nothing either.
            tag = max(self._reached.get(order.priority, 0.0), self._paid.pop(name, 0.0))
            self._lanes[name] = _Lane(*name, tag=tag)
        lane = self._lanes[name]
        lane.orders.append(order)
        self._count(lane, order, 1)

    def head(self) -> Order | None:
        """The order that comes next; None when nobody waits."""
        lane = min(self._lanes.values(), key=lambda lane: lane.place, default=None)
        return None if lane is None else lane.orders[0]

    def take(self, rows: int, accept: Callable[[Order], bool]) -> tuple[Order, ...]:
        """Take the next order, whatever its size, and those after it that are accepted and fit into so many rows.

        Whoever is passed over is passed over with all that stands behind it in its lane, so that order is kept.
        """
        taken: list[Order] = []
        total = 0
        lanes = [(lane.place, lane) for lane in self._lanes.values()]
        heapify(lanes)
        while lanes and (total < rows or not taken):
            _, lane = lanes[0]
            order = lane.orders[0]
            if taken and (total + order.rows > rows or not accept(order)):
                heappop(lanes)
                continue
            self._reached[lane.priority] = max(lane.tag, self._reached.get(lane.priority, 0.0))
            lane.tag += order.rows
            self._drop(lane, order)
            taken.append(order)
            total += order.rows
            if lane.orders:
                heapreplace(lanes, (lane.place, lane))
            else:
                heappop(lanes)
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

    def below(self, order: Order) -> Iterator[Order]:
        """Those of lower priority, the first to leave first: the newest of the key that waits with most rows."""
        for priority in sorted(self._kinds, reverse=True):
            if priority > order.priority:
                yield from self._newest(priority, 0)

    def beside(self, order: Order) -> Iterator[Order]:
        """Those of its own priority that are in its way unfairly, the first to leave first.

        The newest of the key that waits with most rows, for as long as that is left with no fewer than the newcomer's
        key would have.
        """
        own = self._lanes.get((order.priority, order.key))
        yield from self._newest(order.priority, order.rows + (0 if own is None else own.rows))

    def _newest(self, priority: int, least: int) -> Iterator[Order]:
        lanes = [
            (-lane.rows, place, reversed(lane.orders))
            for place, lane in enumerate(self._lanes.values())
            if lane.priority == priority
        ]
        heapify(lanes)
        while lanes:
            rows, place, orders = heappop(lanes)
            order = next(orders, None)
            if order is None:
                continue
            left = -rows - order.rows
            if left < least:
                return
            yield order
            heappush(lanes, (-left, place, orders))

    def _drop(self, lane: _Lane, order: Order) -> None:
        if lane.orders[0] is order:
            lane.orders.popleft()
        else:
            lane.orders.remove(order)
        self._count(lane, order, -1)
        if not lane.orders:
            name = (lane.priority, lane.key)
            del self._lanes[name]
            self._paid[name] = lane.tag
            if len(self._paid) > KEYS:
                self._forget()

    def _count(self, lane: _Lane, order: Order, sign: int) -> None:
        rows = sign * order.rows
        lane.rows += rows
        self.rows += rows
        self._length += sign
        self._kinds.setdefault(order.priority, Counter())[self._kind(order)] += rows

    def _forget(self) -> None:
        ahead = {name: tag - self._reached.get(name[0], 0.0) for name, tag in self._paid.items()}
        kept = sorted((name for name in ahead if ahead[name] > 0), key=ahead.__getitem__)[-KEYS // 2 :]
        self._paid = {name: self._paid[name] for name in kept}
