"""Threads for what would keep the event loop from others: reading JSON and forms, decoding pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread

from nestor.serving.order import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")
# Share of the newest in the average of how long a piece of work takes.
NEWEST = 0.125


class Aside:
    """A few threads, before which nobody waits for longer than they were promised an answer in.

    Args:
        threads: that work at once.
        clock: seconds, never running backwards.
        refused: told why somebody was sent away.
    """

    def __init__(self, threads: int, *, clock: Callable[[], float], refused: Callable[[str], None]):
        self._threads, self._clock, self._refused = threads, clock, refused
        self._limiter = anyio.CapacityLimiter(threads)
        self._mean = 0.0

    @property
    def wait(self) -> float:
        """Seconds that who comes now will about wait for a thread."""
        return self._limiter.statistics().tasks_waiting * self._mean / self._threads

    async def do(self, work: Callable[[], _Result], *, arrived: float, promise: float, patience: float) -> _Result:
        """Work in a thread.

        Args:
            work: to be done.
            arrived: on the clock, when the request was complete.
            promise: seconds after that, within which it shall be answered.
            patience: seconds after that, from which on nobody waits for the answer.

        Raises:
            RefusedError: so many wait for a thread that it would be too late, or it has become too late.
        """
        wait = self.wait
        if self._clock() + wait - arrived > promise:
            self._refused("overloaded")
            message = "too much traffic: requests wait to be read. Ask again in a moment."
            raise RefusedError("overloaded", message, after=wait)

        def timed() -> _Result:
            begin = self._clock()
            if begin - arrived >= patience:
                self._refused("expired")
                raise RefusedError("expired", "the deadline passed before the request could be read.", after=1.0)
            try:
                return work()
            finally:
                # A sum lost between two threads does no harm to an average.
                self._mean += NEWEST * (self._clock() - begin - self._mean)

        return await anyio.to_thread.run_sync(timed, limiter=self._limiter)
