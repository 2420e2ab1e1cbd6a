"""How much of the bare network's throughput a server gives, at the same budget, batch and precision."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch

from benchmarks.serve_report import SHARE
from benchmarks.serve_traffic import PATIENT_MS, capacity, tensor_ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.serve_process import Running, Start
    from benchmarks.serve_traffic import Ask
    from nestor.serving.network import Served

BATCHES = (1, 4, 16)
# Requests that wait while one runs, so that the server never waits for its client.
AHEAD = 3
# A promise that no answer misses, so that the batch alone decides; and the pause in which a process comes to rest.
NO_HURRY, REST = "30s", 0.2


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles over some rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Pictures a second at one budget and batch.

    Attributes:
        batch: rows of the network's batches, and of each request with tensors; of single pictures, the server's most.
        budget: of all.
        bare: the network alone, given tensors.
        tensors, pictures: a server, given tensors or encoded pictures.
        tensors_share, pictures_share: of the bare network's, round by round.
    """

    batch: int
    budget: float
    bare: Spread
    tensors: Spread
    pictures: Spread
    tensors_share: Spread
    pictures_share: Spread


def compare(
    start: Start, served: Served, asks: Sequence[Ask], budgets: Sequence[float], *, rounds: int, seconds: float
) -> list[Throughput]:
    """Time the network and servers of it in turn: of each budget and batch, so many rounds of some seconds."""
    taken: dict[tuple[int, float], list[tuple[float, float, float]]] = {}
    declared = ",".join(f"{budget:g}" for budget in budgets)
    with ExitStack() as stack:
        servers = {
            batch: stack.enter_context(start.server(f"throughput {batch}", declared, p95=NO_HURRY, batch=batch))
            for batch in BATCHES
        }
        for turn in range(-1, rounds):
            for batch, running in servers.items():
                for budget in budgets:
                    # One round in front warms up.
                    found = _round(running, served, asks, batch, budget, seconds if turn >= 0 else min(0.2, seconds))
                    taken.setdefault((batch, budget), []).extend([found] if turn >= 0 else [])
    return [_throughput(batch, budget, found) for (batch, budget), found in taken.items()]


def bare(served: Served, rows: int, seconds: float, budget: float) -> float:
    """Pictures a second of the network alone, in batches of so many."""
    items, done = torch.zeros(rows, *served.input.shape), 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        served.run(items, budget)
        done += rows
    return done / (time.perf_counter() - begin)


def holds(found: Sequence[Throughput]) -> dict[str, bool | None]:
    """Whether the server's medians are near the bare network's, everywhere."""
    return {
        "throughput is near the bare network's, given tensors": all(e.tensors_share.median >= SHARE for e in found),
        "throughput is near the bare network's, given pictures": all(e.pictures_share.median >= SHARE for e in found),
    }


def table(found: Sequence[Throughput]) -> str:
    """The throughputs as a table of Markdown."""
    head = ("batch", "budget", "bare", "given tensors", "share", "given pictures", "share")
    rows = [
        (
            f"{each.batch}",
            f"{each.budget:g}",
            *(_shown(spread, ".1f") for spread in (each.bare, each.tensors)),
            _shown(each.tensors_share, ".2f"),
            _shown(each.pictures, ".1f"),
            _shown(each.pictures_share, ".2f"),
        )
        for each in found
    ]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))
    return (
        f"{lines}\n\nPictures a second, medians and quartiles; measured in turn. Pictures are decoded by the server.\n"
    )


def _round(
    running: Running, served: Served, asks: Sequence[Ask], batch: int, budget: float, seconds: float
) -> tuple[float, float, float]:
    wishes = {"budget": budget, "deadline_ms": PATIENT_MS}
    full = tensor_ask(served.input.name, torch.zeros(batch, *served.input.shape), wishes)
    at = [
        type(ask)(path=f"{ask.path}&budget={budget:g}&deadline_ms={PATIENT_MS}", body=ask.body)
        for ask in asks
        if ask.head is None
    ]
    alone = bare(served, batch, seconds, budget)
    time.sleep(REST)
    tensors = batch * asyncio.run(capacity(running.port, [full], seconds, together=AHEAD))
    pictures = asyncio.run(capacity(running.port, at, seconds, together=AHEAD * batch))
    time.sleep(REST)
    return alone, tensors, pictures


def _throughput(batch: int, budget: float, found: Sequence[tuple[float, float, float]]) -> Throughput:
    alone, tensors, pictures = zip(*found, strict=True)
    return Throughput(
        batch=batch,
        budget=budget,
        bare=_spread(alone),
        tensors=_spread(tensors),
        pictures=_spread(pictures),
        tensors_share=_spread([each / of for each, of in zip(tensors, alone, strict=True)]),
        pictures_share=_spread([each / of for each, of in zip(pictures, alone, strict=True)]),
    )


def _spread(values: Sequence[float]) -> Spread:
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(median=median(values), low=low, high=high)


def _shown(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}} ({spread.low:{form}} to {spread.high:{form}})"
