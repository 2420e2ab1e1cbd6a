"""Where the time of one forward pass goes, operator by operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.candidates import pictures
from benchmarks.networks import Logits
from benchmarks.record import Operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.networks import Networks
    from benchmarks.settings import Cell, Settings, Vision

REST = "others"


def operators(vision: Vision, networks: Networks, cell: Cell, settings: Settings) -> tuple[Operator, ...]:
    """Profile the dense networks and, if there is one, the nested one at every budget, in eager mode and warmed up.

    Args:
        vision: their sizes.
        networks: in single precision.
        cell: what to run.
        settings: budgets, and how many operators to name; the others are summed up.
    """
    cast, images = networks.to(cell.precision), pictures(vision, cell)
    runs = {"ours": Logits(cast.dense), "timm": Logits(cast.timm), "transformers": Logits(cast.transformers)}
    nested = cast.elastic.get("nested")
    if nested is not None:
        reachable = [budget for budget in settings.budgets if budget >= nested.least_budget(vision.patches)]
        runs |= {f"nested {budget:g}": Logits(nested, budget) for budget in reachable}
    with torch.inference_mode():
        taken = {name: _times(lambda run=run: run(images), settings.rounds) for name, run in runs.items()}
    total: dict[str, float] = {}
    for times in taken.values():
        for name, (_, ms) in times.items():
            total[name] = total.get(name, 0.0) + ms
    named = sorted(total, key=lambda name: -total[name])[: settings.operators]
    found = []
    for network, times in taken.items():
        rest = [value for name, value in times.items() if name not in named]
        shown = {name: times[name] for name in named if name in times}
        shown[REST] = (sum(calls for calls, _ in rest), sum(ms for _, ms in rest))
        found += [
            Operator(cell=cell.title, network=network, operator=name, calls=calls, ms=ms)
            for name, (calls, ms) in shown.items()
        ]
    return tuple(found)


def _times(call: Callable[[], object], rounds: int) -> dict[str, tuple[int, float]]:
    """Calls and own milliseconds of each operator in one call, the mean over some."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(rounds):
            call()
    events = (event for event in found.key_averages() if event.self_cpu_time_total > 0)
    return {event.key: (event.count // rounds, 1e-3 * event.self_cpu_time_total / rounds) for event in events}
