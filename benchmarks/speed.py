"""One run of the benchmarks, from settings to a report."""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import nestor
from benchmarks import floor
from benchmarks.candidates import prepare
from benchmarks.judge import judge
from benchmarks.networks import build
from benchmarks.operators import operators
from benchmarks.races import timed
from benchmarks.record import Report
from benchmarks.runtimes import compiler
from benchmarks.settings import SIZES
from benchmarks.training import race_steps
from nestor.measure.clock import machine
from nestor.measure.cost import parameters
from nestor.recipes.base import sources

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.floor import Rates
    from benchmarks.networks import Networks
    from benchmarks.record import Absent, Operator, Row
    from benchmarks.settings import Cell, Settings

PACKAGES = ("torch", "transformers", "timm", "onnxruntime", "openvino")


def measure(settings: Settings, say: Callable[[str], object] = print) -> Report:
    """Run all races of these settings.

    Args:
        settings: what to measure.
        say: is told of each race that begins.

    Raises:
        ImportError: timm or transformers is missing.
    """
    start, date, made_with = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M"), sources()
    say("The machine's rates")
    rates = floor.measure(settings)
    rows: list[Row] = []
    absent: list[Absent] = []
    found: list[Operator] = []
    known: dict[tuple[str, int], Networks] = {}
    plan = [(cell, False) for cell in settings.cells] + [(cell, True) for cell in settings.training]
    for cell, trains in plan:
        say(f"{cell.title}{', training' if trains else ''}")
        key = (cell.size, cell.side)
        if key not in known:
            # Networks of one size at a time, since all of them would crowd the memory.
            known = {key: build(SIZES[cell.size], side=cell.side, patch=settings.patch, classes=settings.classes)}
        if trains:
            rows += race_steps(known[key], cell, settings, rates)
            continue
        new, missing = _race(known[key], cell, settings, rates)
        rows, absent = [*rows, *new], [*absent, *missing]
        found += operators(known[key], cell, settings) if settings.operators else ()
    return Report(
        date=date,
        sources=made_with,
        seconds=round(time.monotonic() - start, 1),
        settings=asdict(settings),
        machine=machine(),
        versions=_versions(),
        rates=rates,
        rows=tuple(rows),
        absent=tuple(absent),
        operators=tuple(found),
    )


@torch.inference_mode()
def _race(networks: Networks, cell: Cell, settings: Settings, rates: Rates) -> tuple[tuple[Row, ...], list[Absent]]:
    calls, absent = prepare(networks, cell, settings)
    timings = timed(calls, settings, cell.title)
    weights = parameters(networks.dense)
    return judge(cell, timings, {c: rates.floor_ms(cell, c.macs, weights) for c in timings}), absent


def _versions() -> dict[str, str | None]:
    path = compiler()
    found = {"nestor": nestor.__version__, "compiler": None if path is None else Path(path).name}
    return found | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
