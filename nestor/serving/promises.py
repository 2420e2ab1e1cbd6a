"""Who is owed an answer: each gets exactly one, or is told why there is none."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from nestor.serving.answer import Answer
from nestor.serving.order import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from nestor.serving.answer import Watch
    from nestor.serving.network import Answers, Served
    from nestor.serving.order import Order
    from nestor.serving.scheduler import Batch, Refusals

_log = logging.getLogger("nestor.serving")
Owed = tuple["Future[Answer]", "Tensor"]


class Promises:
    """The futures of those who wait, by the number of their order. Any thread may call."""

    def __init__(self, watch: Watch | None):
        self.watch = watch
        self._owed: dict[int, Owed] = {}

    def make(self, order: Order, items: Tensor) -> Future[Answer]:
        """Promise an answer to what an order is for, (B, ...)."""
        future: Future[Answer] = Future()
        self._owed[order.number] = future, items
        return future

    def take(self, orders: Iterable[Order]) -> list[Owed]:
        """Those who are in a batch; whoever takes them answers them."""
        return [self._owed.pop(order.number) for order in orders]

    def keep(
        self, batch: Batch, owed: Iterable[Owed], answers: Answers, *, now: float, version: int, served: Served
    ) -> None:
        """Give everyone in a batch their own rows.

        Raises:
            RuntimeError: there are more rows, or fewer, than were asked for.
        """
        if len(answers.logits) != batch.rows:
            raise RuntimeError(f"a network must answer each of {batch.rows} items; got {len(answers.logits)} answers.")
        first = 0
        for order, (future, _) in zip(batch.orders, owed, strict=True):
            rows = slice(first, first + order.rows)
            first = rows.stop
            if not bool(answers.logits[rows].isfinite().all()):
                self.fail(future, RefusedError("not_finite", "the network's answer to these pictures is not finite."))
                continue
            answer = Answer(
                logits=answers.logits[rows],
                experts=None if answers.experts is None else answers.experts[rows],
                budget=batch.budget,
                batch=batch.rows,
                queue=batch.waiting,
                waited=batch.started - order.arrived,
                ran=now - batch.started,
                version=version,
                served=served,
            )
            if future.set_running_or_notify_cancel():
                future.set_result(answer)

    def refuse(self, refusals: Refusals) -> None:
        """Tell those who wait no longer."""
        for order, refused in refusals:
            future, _ = self._owed.pop(order.number)
            self.fail(future, refused)

    def drop(self, order: Order) -> None:
        """Owe nothing any more to somebody who has left."""
        future, _ = self._owed.pop(order.number)
        future.cancel()
        self.tell("refused", "left")

    def fail(self, future: Future[Answer], refused: RefusedError) -> None:
        """Say why there is no answer, unless there was one."""
        if future.done() and not future.cancelled():
            return
        self.tell("refused", refused.kind)
        if not future.cancelled() and future.set_running_or_notify_cancel():
            future.set_exception(refused)

    def tell(self, event: str, *facts: Any) -> None:
        """Tell the watch, whose failures are nobody else's."""
        try:
            if self.watch is not None:
                getattr(self.watch, event)(*facts)
        except Exception:
            _log.exception("what happened could not be counted")
