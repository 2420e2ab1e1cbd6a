"""The engine: a thread that runs the network, batch by batch, as the scheduler says, and one that minds deadlines."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch

from nestor.serving.network import LostError, Perishable, keep, promised, warm_up
from nestor.serving.order import NORMAL, Order, RefusedError
from nestor.serving.promises import Promises
from nestor.serving.scheduler import Scheduler
from nestor.serving.times import Times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from torch import Tensor

    from nestor.serving.answer import Answer, Watch
    from nestor.serving.controller import Policy
    from nestor.serving.network import Served
    from nestor.serving.promises import Owed
    from nestor.serving.scheduler import Batch

_log = logging.getLogger("nestor.serving")
# Seconds between two looks at whether a network is still there while nobody asks, and the pauses between two tries to
# bring it back.
LOOK, PAUSE, LONGEST = 0.25, 0.5, 30.0
# How many times as long as the slowest batch that was measured a network is waited for before it is given up, and for
# how many seconds at least.
HUNG, PATIENCE = 20.0, 5.0


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
        self.served, self.policy, self.most, self.clock = served, policy, batch, clock
        self.version = 1
        self._numbers = itertools.count()
        self._promises = Promises(watch)
        self._at_work: Served | None = None
        self._retired: list[Served] = []
        lock = threading.RLock()
        self._changed, self._sooner, self._alarm = threading.Condition(lock), threading.Condition(lock), math.inf
        self._scheduler: Scheduler | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        with self._changed:
            scheduler, thread = self._scheduler, self._thread
            if scheduler is None or thread is None or scheduler.closed:
                return False
            return thread.is_alive() and not scheduler.stalled(self.clock())

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
            self._thread = threading.Thread(target=self._work, args=(self._turn,), name="nestor-engine", daemon=True)
            self._thread.start()
            threading.Thread(target=self._work, args=(self._mind,), name="nestor-deadlines", daemon=True).start()

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
                self._promises.tell("refused", refused.kind)
                raise refused
        return order

    @contextmanager
    def coming(self, order: Order) -> Iterator[None]:
        """Let whoever comes after an order find it ahead, while what it is for is being read.

        Raises:
            RefusedError: the engine has not started.
        """
        with self._changed:
            scheduler = self._running()
            scheduler.coming[order.number] = order
        try:
            yield
        finally:
            with self._changed:
                del scheduler.coming[order.number]

    def submit(self, order: Order, items: Tensor) -> Future[Answer]:
        """Queue what an order is for, (B, ...); the future gives an Answer, or raises RefusedError.

        Raises:
            ValueError: items of another shape than the network's, or another number of them than ordered.
        """
        wanted = self.served.input
        if tuple(items.shape) != (order.rows, *wanted.shape):
            shape = (order.rows, *wanted.shape)
            raise ValueError(f"{wanted.name} must be of shape {shape}; got {tuple(items.shape)}.")
        with self._changed:
            future = self._promises.make(order, items)
            try:
                refusals = self._running().offer(order, self.clock())
            except RefusedError as refused:
                refusals = [(order, refused)]
            self._changed.notify_all()
            if order.arrived + order.within(self.policy.patience) < self._alarm:
                self._sooner.notify()
        self._promises.refuse(refusals)
        return future

    def forget(self, order: Order) -> None:
        """Nobody waits for an order any more: it is not run, unless it runs already."""
        with self._changed, suppress(ValueError):
            self._running().queue.remove(order)
            self._promises.drop(order)

    def reload(self, served: Served) -> None:
        """Warm up another network beside the running one, then go on with it; who waits is answered by the new one.

        Raises:
            ValueError: it is not what clients were promised, or is too slow.
            LostError: it was lost before it was warm.
            RefusedError: the server is stopping.
        """
        try:
            keep(promised(self.served), promised(served))
            times = self._measured(served)
        except BaseException:
            _close(served)
            raise
        with self._changed:
            if self._stopping:
                _close(served)
                raise RefusedError("draining", "the server is stopping; it takes no other network.", after=1.0)
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
            self._sooner.notify()

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
            self._sooner.notify()
        self._promises.refuse(refusals)
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
        if isinstance(served, Perishable):
            served.patience = max(PATIENCE, HUNG * times.longest)
        return times

    def _running(self) -> Scheduler:
        if self._scheduler is None:
            raise RefusedError("draining", "the server is not ready yet; ask again in a moment.", after=1.0)
        return self._scheduler

    def _work(self, turn: Callable[[], bool]) -> None:
        """Take turns while there is something to do."""
        while True:
            try:
                if not turn():
                    return
            # Whatever it was, the thread lives on: nobody else would answer.
            except BaseException:
                _log.exception("the engine stumbled and goes on")
                with self._changed:
                    self._changed.wait(PAUSE)

    def _turn(self) -> bool:
        """Run a batch, or wait for one; says whether there is still something to do."""
        with self._changed:
            scheduler, served = self._running(), self.served
        if isinstance(served, Perishable) and not served.alive:
            return self._revive(scheduler, served)
        with self._changed:
            batch, refusals = scheduler.take(self.clock())
            if batch is None and not refusals:
                if self._stopping:
                    return False
                # Whoever is lost while nobody asks is brought back before somebody does.
                self._changed.wait(LOOK if isinstance(served, Perishable) else None)
                return True
            # Another network may have come while nobody looked.
            served, version = self.served, self.version
            self._at_work = served
            owed = [] if batch is None else self._promises.take(batch.orders)
        self._promises.refuse(refusals)
        if batch is not None:
            try:
                self._serve(scheduler, batch, owed, served, version)
            # MemoryError included: everybody hears of it.
            except BaseException as error:
                self._crashed(scheduler, batch, owed, served, error)
        with self._changed:
            self._at_work, retired = None, self._retired
            self._retired = []
        for each in retired:
            _close(each)
        return True

    def _mind(self) -> bool:
        """Refuse whoever has waited too long, also while a batch runs; says whether somebody may still come."""
        with self._changed:
            scheduler, now = self._running(), self.clock()
            if self._stopping and not len(scheduler.queue):
                return False
            refusals = scheduler.expire(now)
            if not refusals:
                self._alarm = scheduler.due()
                # Never at once again, however clocks are rounded.
                self._sooner.wait(None if self._alarm == math.inf else max(self._alarm - now, 1e-3))
                self._alarm = -math.inf
        self._promises.refuse(refusals)
        return True

    def _revive(self, scheduler: Scheduler, served: Perishable) -> bool:
        """Bring a network back, however often that takes; says whether there is still something to do."""
        _log.error("the network was lost and is being brought back")
        with self._changed:
            refusals = scheduler.stall(self.clock(), served.starting)
        self._promises.refuse(refusals)
        pause = PAUSE
        while True:
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
                self._promises.tell("revived")
                break
            with self._changed:
                self._changed.wait(pause)
            pause = min(2 * pause, LONGEST)
        with self._changed:
            scheduler.resume()
        return True

    def _serve(self, scheduler: Scheduler, batch: Batch, owed: list[Owed], served: Served, version: int) -> None:
        answers = served.run(torch.cat([items for _, items in owed]), batch.budget)
        now = self.clock()
        with self._changed:
            scheduler.finish(batch, now)
        self._promises.tell("batch", batch, now - batch.started)
        self._promises.keep(batch, owed, answers, now=now, version=version, served=served)

    def _crashed(
        self, scheduler: Scheduler, batch: Batch, owed: list[Owed], served: Served, error: BaseException
    ) -> None:
        _log.error("a batch of %d failed at budget %g", batch.rows, batch.budget, exc_info=error)
        # Who comes back before the network does would only be sent away again.
        after = served.starting if isinstance(error, LostError) and isinstance(served, Perishable) else None
        try:
            with self._changed:
                scheduler.finish(batch, self.clock(), answered=False)
                refusals = [] if after is None else scheduler.stall(self.clock(), after)
        finally:
            for future, _ in owed:
                self._promises.fail(future, RefusedError("crashed", "the batch failed; ask again.", after=after or 1.0))
        self._promises.refuse(refusals)


def _close(served: Served) -> None:
    if isinstance(served, Perishable):
        served.close()
