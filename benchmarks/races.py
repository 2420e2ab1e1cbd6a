"""Timing candidates in turns, for as many rounds as patience allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from nestor.measure.clock import race

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.settings import Settings
    from nestor.measure.clock import Timing

K = TypeVar("K")
# Fewer tell nothing about the spread.
LEAST = 3


def timed(calls: Mapping[K, Callable[[], object]], settings: Settings, what: str) -> dict[K, Timing]:
    """Time calls, interleaved, `settings.rounds` times each or until `settings.seconds` are over.

    One round more, in front, warms up and tells how long a round takes.
    """
    numbered = {str(number): call for number, call in enumerate(calls.values())}
    trial = race(numbered, rounds=1, warmup=0, what=f"Warming up {what}")
    each = 1e-3 * sum(timing.median_ms for timing in trial.values())
    affordable = max(LEAST, int(settings.seconds / max(each, 1e-9)))
    timings = race(numbered, rounds=min(settings.rounds, affordable), warmup=0, what=f"Timing {what}")
    return dict(zip(calls, timings.values(), strict=True))
