"""The engine: one thread that runs the network, batch by batch, as the scheduler says."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch

from nestor.serving.answer import Answer
from nestor.serving.network import LostError, Perishable, warm_up
from nestor.serving.order import NORMAL, Order, RefusedError
from nestor.serving.scheduler import Scheduler
from nestor.serving.times import Times

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from nestor.serving.answer import Watch
    from nestor.serving.controller import Policy
    from nestor.serving.network import Served
    from nestor.serving.scheduler import Batch, Refusals

_log = logging.getLogger("nestor.serving")
# Seconds between two looks at whether a network is still there while nobody asks, and the pauses between two tries to
# bring it back.
LOOK, PAUSE, LONGEST = 0.25, 0.5, 30.0


class Engine:
    """Answers pictures, or whatever the network takes, at the budget that the traffic allows.

    A perishable network that is lost fails the batch that it ran; whoever cannot wait until it is back is told so.

    Args:
        served: the network; one that is perishable is closed in the end.
        policy: what is promised.
        batch: the largest batch.
        watch: keeps count.
        clock: seconds, never running backwards.
    """

    def __init__(
        self,
        served: Served,
        policy: Policy,
        *,
        batch: int = 16,
        watch: Watch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.served, self.policy, self.most, self.watch, self.clock = served, policy, batch, watch, clock
        self.version = 1
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[Future[Answer], Tensor]] = {}
        self._at_work: Served | None = None
        self._retired: list[Served] = []
        self._changed = threading.Condition()
        self._scheduler: Scheduler | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._scheduler is not None and not self._scheduler.closed and not self._scheduler.stalled(self.clock())

    @property
    def budget(self) -> float:
        """What a request is given at the moment that asks for nothing else."""
        return self.served.budgets[-1] if self._scheduler is None else self._scheduler.controller.budget

    @property
    def rows(self) -> int:
        """How many rows wait."""
        return 0 if self._scheduler is None else self._scheduler.queue.rows

    def start(self) -> None:
        """Warm up every declared budget, then take requests.

        Raises:
            ValueError: the target is shorter than the network's quickest answer.
            LostError: the network was lost before it was warm.
        """
        if self._thread is not None:
            return
        try:
            times = self._measured(self.served)
        except LostError:
            # Whoever is told to stop while it starts lets the network go.
            if self._stopping:
                return
            raise
        with self._changed:
            if self._stopping or self._thread is not None:
                return
            self._scheduler = Scheduler(self.policy, times)
            self._thread = threading.Thread(target=self._work, name="nestor-engine", daemon=True)
            self._thread.start()

    def order(
        self,
        rows: int,
        *,
        arrived: float | None = None,
        key: str = "",
        priority: int = NORMAL,
        floor: float = 0.0,
        ceiling: float = 1.0,
        deadline: float | None = None,
    ) -> Order:
        """A request for so many pictures; see `nestor.serving.order.Order`.

        Raises:
            RefusedError: there is no room for it now, so that its pictures need not be read.
            ValueError: it asks for what is never given.
        """
        if rows > self.most:
            raise ValueError(f"a request may hold at most {self.most} pictures; got {rows}. Send several.")
        now = self.clock()
        order = Order(
            number=next(self._numbers),
            arrived=now if arrived is None else arrived,
            rows=rows,
            key=key,
            priority=priority,
            floor=floor,
            ceiling=ceiling,
            deadline=deadline,
        )
        with self._changed:
            scheduler = self._running()
            scheduler.admissible(order, 1.0)
            refused = scheduler.refusal(order, now)
            if refused is not None:
                scheduler.controller.arrive(now, rows)
                self._count(refused)
                raise refused
        return order

    def submit(self, order: Order, items: Tensor) -> Future[Answer]:
        """Queue what an order is for, (B, ...); the future gives an Answer, or raises RefusedError.

        Raises:
            ValueError: items of another shape than the network's, or another number of them than ordered.
        """
        wanted = self.served.input
        if tuple(items.shape) != (order.rows, *wanted.shape):
            shape = (order.rows, *wanted.shape)
            raise ValueError(f"{wanted.name} must be of shape {shape}; got {tuple(items.shape)}.")
        future: Future[Answer] = Future()
        with self._changed:
            self._waiting[order.number] = (future, items)
            try:
                refusals = self._running().offer(order, self.clock())
            except RefusedError as refused:
                refusals = [(order, refused)]
            self._changed.notify_all()
        self._refuse(refusals)
        return future

    def reload(self, served: Served) -> None:
        """Warm up another network beside the running one, then go on with it; who waits is answered by the new one.

        Raises:
            ValueError: it takes other items or other budgets, which clients were promised, or is too slow.
            LostError: it was lost before it was warm.
        """
        try:
            for name in ("budgets", "input"):
                old, new = getattr(self.served, name), getattr(served, name)
                if old != new:
                    raise ValueError(
                        f"a new network must keep the {name} {old}; got {new}. Start another server for it."
                    )
            times = self._measured(served)
        except BaseException:
            _close(served)
            raise
        with self._changed:
            old, self.served, self.version = self.served, served, self.version + 1
            if self._scheduler is not None:
                self._scheduler.times = times
            # Whoever is in the old one is answered by it.
            at_work = self._at_work is old
            if at_work:
                self._retired.append(old)
        if not at_work:
            _close(old)

    def close(self) -> None:
        """Take no more requests; those that wait are answered still."""
        with self._changed:
            self._stopping = True
            if self._scheduler is not None:
                self._scheduler.close()
            self._changed.notify_all()

    def drain(self, seconds: float | None = None) -> bool:
        """Close, and wait until everybody is answered; says whether that was so within the time given.

        Whoever is left then is refused, and may ask another server.
        """
        self.close()
        if self._thread is not None:
            self._thread.join(seconds)
        with self._changed:
            done = self._thread is None or not self._thread.is_alive()
            refusals = [] if self._scheduler is None else self._scheduler.close(at_once=True)
            self._changed.notify_all()
        self._refuse(refusals)
        _close(self.served)
        return done

    def _measured(self, served: Served) -> Times:
        times = Times(warm_up(served, self.most))
        least = times.mean(served.budgets[0], 1)
        if least > self.policy.target:
            raise ValueError(
                f"the target of {1e3 * self.policy.target:.0f} ms is shorter than one picture takes at budget "
                f"{served.budgets[0]:g}, {1e3 * least:.0f} ms. Raise the target, or add a smaller budget."
            )
        return times

    def _running(self) -> Scheduler:
        if self._scheduler is None:
            raise RefusedError("draining", "the server is not ready yet; ask again in a moment.", after=1.0)
        return self._scheduler

    def _work(self) -> None:
        while True:
            with self._changed:
                scheduler, served = self._running(), self.served
            if isinstance(served, Perishable) and not served.alive:
                if not self._revive(scheduler, served):
                    return
                continue
            with self._changed:
                batch, refusals = scheduler.take(self.clock())
                if batch is None and not refusals:
                    if self._stopping:
                        return
                    # Whoever is lost while nobody asks is brought back before somebody does.
                    self._changed.wait(LOOK if isinstance(served, Perishable) else None)
                    continue
                # Another network may have come while nobody looked.
                served, version = self.served, self.version
                self._at_work = served
                wanted = [] if batch is None else [self._waiting.pop(order.number) for order in batch.orders]
            self._refuse(refusals)
            if batch is not None:
                self._serve(scheduler, batch, wanted, served, version)
            with self._changed:
                self._at_work, retired = None, self._retired
                self._retired = []
            for each in retired:
                _close(each)

    def _revive(self, scheduler: Scheduler, served: Perishable) -> bool:
        """Bring a network back, however often that takes; says whether there is still something to do."""
        _log.error("the network was lost and is being brought back")
        with self._changed:
            refusals = scheduler.stall(self.clock(), served.starting)
        pause = PAUSE
        while True:
            self._refuse(refusals)
            with self._changed:
                if self._stopping and not len(scheduler.queue):
                    return False
                if self.served is not served:
                    break
            try:
                same = served.revive()
            except Exception:
                _log.exception("the network could not be brought back; the next try is in %.1f s", pause)
            else:
                with self._changed:
                    # Its files may have changed since it was loaded first.
                    self.version += not same
                _log.info("the network is back", extra={"facts": {"version": self.version}})
                if self.watch is not None:
                    self.watch.revived()
                break
            with self._changed:
                self._changed.wait(pause)
                refusals = scheduler.expire(self.clock())
            pause = min(2 * pause, LONGEST)
        with self._changed:
            scheduler.resume()
        return True

    def _serve(
        self,
        scheduler: Scheduler,
        batch: Batch,
        wanted: list[tuple[Future[Answer], Tensor]],
        served: Served,
        version: int,
    ) -> None:
        try:
            answers = served.run(torch.cat([items for _, items in wanted]), batch.budget)
        # Whatever it was, MemoryError included, the thread lives on and everybody hears of it.
        except BaseException as error:
            _log.exception("a batch of %d failed at budget %g", batch.rows, batch.budget)
            # Who comes back before the network does would only be sent away again.
            after = served.starting if isinstance(error, LostError) and isinstance(served, Perishable) else None
            with self._changed:
                scheduler.finish(batch, self.clock(), answered=False)
                refusals = [] if after is None else scheduler.stall(self.clock(), after)
            for future, _ in wanted:
                self._fail(future, RefusedError("crashed", "the batch failed; ask again.", after=after or 1.0))
            self._refuse(refusals)
            return
        now = self.clock()
        with self._changed:
            scheduler.finish(batch, now)
        if self.watch is not None:
            self.watch.batch(batch, now - batch.started)
        first = 0
        for order, (future, _) in zip(batch.orders, wanted, strict=True):
            rows = slice(first, first + order.rows)
            first = rows.stop
            if not bool(answers.logits[rows].isfinite().all()):
                self._fail(future, RefusedError("not_finite", "the network's answer to these pictures is not finite."))
            elif future.set_running_or_notify_cancel():
                future.set_result(
                    Answer(
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
                )

    def _refuse(self, refusals: Refusals) -> None:
        for order, refused in refusals:
            with self._changed:
                future, _ = self._waiting.pop(order.number)
            self._fail(future, refused)

    def _fail(self, future: Future[Answer], refused: RefusedError) -> None:
        self._count(refused)
        if future.set_running_or_notify_cancel():
            future.set_exception(refused)

    def _count(self, refused: RefusedError) -> None:
        if self.watch is not None:
            self.watch.refused(refused.kind)


def _close(served: Served) -> None:
    if isinstance(served, Perishable):
        served.close()
