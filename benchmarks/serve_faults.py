"""What becomes of a server that loses its network under load, and of its memory when it is busy for long."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

from benchmarks.serve_http import anything, until
from benchmarks.serve_process import READY
from benchmarks.serve_report import PROMISED
from benchmarks.serve_traffic import drive, schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.serve_process import Running
    from benchmarks.serve_traffic import Ask, Sample

# Seconds between two looks at memory.
LOOK = 2.0
# By how much of itself memory may grow over a soak, at the slope of its last two thirds, and the share of looks that
# may fail: a process that is replaced cannot be read.
GROWTH, BLIND = 0.02, 0.05


def killed(running: Running, asks: Sequence[Ask], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """What becomes of traffic when the network's process is killed in the middle of it."""
    due = schedule([rate], seconds, seed)
    [worker] = running.workers()
    timer = threading.Timer(seconds / 3, os.kill, (worker, signal.SIGKILL))
    timer.start()
    samples = asyncio.run(drive(running.port, due, asks))
    timer.join()
    asyncio.run(until(running.port, "/v2/health/ready", anything, READY))
    told = [sample for sample in samples if sample.status in (429, 503)]
    lost = [sample for sample in samples if sample.status not in (200, 429, 503)]
    again = [sample.due for sample in samples if sample.status == 200 and sample.due > seconds / 3]
    return {
        "statuses": statuses(samples),
        "nobody is lost": not lost and all(sample.again for sample in told),
        "another process serves": running.workers() != [worker] and running.metric("nestor_revivals_total") == 1,
        "seconds_until_answers": min(again) - seconds / 3 if again else None,
    }


def soaked(running: Running, asks: Sequence[Ask], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """How much memory a server holds while it is busy, whether that grows, and whether it answers all the while."""
    over, found = threading.Event(), Looks()
    thread = threading.Thread(target=found.watch, args=(running.memory, over, LOOK), daemon=True)
    thread.start()
    samples = asyncio.run(drive(running.port, schedule([rate], seconds, seed), asks))
    over.set()
    thread.join()
    return {
        "statuses": statuses(samples),
        "megabytes": found.megabytes,
        "seconds": found.seconds,
        "unread": found.unread,
        **growth(found.seconds, found.megabytes),
        "memory is flat": flat(found.seconds, found.megabytes, len(found.unread)),
        "the soak is answered": answered(samples),
    }


class Looks:
    """What was seen of a memory, and what could not be read."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.megabytes: list[float] = []
        self.unread: list[str] = []

    def watch(self, memory: Callable[[], float], over: threading.Event, pause: float) -> None:
        """Look until it is over; one look that fails is kept as such, and the next may not."""
        begin = time.monotonic()
        while not over.wait(pause):
            try:
                seen = round(memory(), 1)
            # The number of a process that has just ended may belong to anything.
            except (OSError, ValueError, IndexError) as error:
                self.unread.append(f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}")
            else:
                self.seconds.append(round(time.monotonic() - begin, 1))
                self.megabytes.append(seen)


def growth(seconds: Sequence[float], megabytes: Sequence[float]) -> dict[str, float | None]:
    """How fast memory grows at the end: the slope of least squares over the last two thirds; None of too few looks."""
    first = len(seconds) // 3
    late, held = seconds[first:], megabytes[first:]
    if len(late) < 3:
        return {"megabytes_an_hour": None, "percent_an_hour": None}
    slope = 3600 * linear_regression(late, held).slope
    return {"megabytes_an_hour": slope, "percent_an_hour": 100 * slope * len(held) / sum(held)}


def flat(seconds: Sequence[float], megabytes: Sequence[float], unread: int = 0) -> bool:
    """Whether memory had stopped to grow, and was seen to have."""
    percent = growth(seconds, megabytes)["percent_an_hour"]
    if percent is None or unread > BLIND * (unread + len(seconds)):
        return False
    return percent / 100 * (seconds[-1] / 3600) <= GROWTH


def answered(samples: Sequence[Sample]) -> bool:
    """Whether nearly all were answered, and the others told to come later."""
    counts = statuses(samples)
    return set(counts) <= {200, 429} and counts.get(200, 0) >= PROMISED * len(samples)


def statuses(samples: Sequence[Sample]) -> dict[int, int]:
    """How many requests ended with each status."""
    return dict(sorted(Counter(sample.status for sample in samples).items()))
