"""How long things take: candidates take turns, so that a slow spell of the machine hits all of them alike."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch

from nestor.data.scan import watch
from nestor.machine import processor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one call: the median and the two quartiles over some rounds."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


def race(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int = 20, warmup: int = 3, what: str = "Timing"
) -> dict[str, Timing]:
    """Time callables interleaved (A B C A B C ...).

    Args:
        candidates: what to call, by name.
        rounds: how often each is timed.
        warmup: rounds before those that count.
        what: shown beside the progress bar, which appears after two seconds.

    Raises:
        ValueError: when there is nothing to time, or rounds or warmup are too small.
    """
    if not candidates:
        raise ValueError("a race needs at least one candidate; got none.")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"a race needs at least 1 round and no negative warmup; got {rounds} and {warmup}.")
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    turns = [(turn, *pair) for turn in range(-warmup, rounds) for pair in candidates.items()]
    for turn, name, call in watch(turns, total=len(turns), what=what):
        _settle()
        start = time.perf_counter()
        call()
        _settle()
        if turn >= 0:
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: _timing(values) for name, values in taken.items()}


def machine() -> dict[str, str]:
    """What measurements were taken on: processor, cores, threads, accelerator, versions."""
    facts = {
        "processor": processor(),
        "cores": str(os.cpu_count() or "unknown"),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def _settle() -> None:
    # Kernels run behind the caller's back; nothing to wait for until something was launched.
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _timing(values: list[float]) -> Timing:
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Timing(median_ms=median(values), low_ms=low, high_ms=high, rounds=len(values))
