"""One run of the benchmarks, from settings to a report that is kept."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

import nestor
from benchmarks import floor, runtimes
from benchmarks.candidates import vision_entries
from benchmarks.mixtures import layer_entries
from benchmarks.networks import build
from benchmarks.operators import operators
from benchmarks.plot import draw
from benchmarks.record import Absent, Report, judge
from benchmarks.rivals import reach_rivals
from benchmarks.settings import INT8, SUBJECTS, Layer
from benchmarks.show import show
from nestor.data.scan import watch
from nestor.measure.clock import machine, race
from nestor.ops.int8 import ready
from nestor.store import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.networks import Networks
    from benchmarks.record import Candidate
    from benchmarks.runtimes import Call
    from benchmarks.settings import Cell, Settings
    from nestor.measure.clock import Timing

PACKAGES = ("torch", "transformers", "timm", "onnxruntime", "openvino", "mixture-of-experts")
# Fewer rounds tell nothing about the spread.
LEAST = 5
# Seconds between two calls.
REST = 0.03


def measure(settings: Settings, folder: Path, say: Callable[[str], object] = print) -> Report:
    """Run all races of these settings, or those that an interrupted run of the same left.

    Args:
        settings: what to measure.
        folder: holds what is finished until all is.
        say: is told of each race that begins.

    Raises:
        ImportError: timm or transformers is missing.
    """
    if not ready():
        say("Eight bits are left out: this processor cannot sum their products exactly.")
        settings = replace(settings, cells=tuple(cell for cell in settings.cells if cell.precision != INT8))
    empty = Report(
        date=time.strftime("%Y-%m-%dT%H:%M"),
        sources=_sources(),
        seconds=0.0,
        settings=asdict(settings),
        machine=machine(),
        versions=_versions(),
        rates=floor.Rates(matmuls=(), memory=0.0),
    )
    same = json.dumps(asdict(replace(empty, date="")), sort_keys=True)
    kept = folder / f"unfinished-{hashlib.sha256(same.encode()).hexdigest()[:12]}.json"
    begin = time.monotonic()
    if kept.is_file():
        report = Report.from_json(kept.read_text(encoding="utf-8"))
        say(f"Going on after {len(report.cells)} of {len(settings.cells)} races, from {kept}")
    else:
        say("The machine's rates")
        report = replace(empty, rates=floor.measure(settings))
    networks: dict[str, Networks] = {}
    for number, cell in enumerate(settings.cells, start=1):
        if cell in report.cells:
            continue
        say(f"{number} of {len(settings.cells)}: {cell.title}")
        report = _with_race(report, cell, settings, networks)
        now = time.monotonic()
        report, begin = replace(report, seconds=round(report.seconds + now - begin, 1)), now
        write_text(kept, report.to_json())
    kept.unlink(missing_ok=True)
    return report


def keep(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write `folder/MACHINE/DATE-SOURCES.json`, and beside it table and figure of the latest run.

    Raises:
        OSError: when one cannot be written.
        ImportError: matplotlib is missing; numbers and table are kept all the same.
    """
    place = folder / report.place
    numbers, table, figure = place / f"{report.name}.json", place / "latest.txt", place / "latest.png"
    write_text(numbers, report.to_json())
    text = StringIO()
    show(report, Console(file=text, width=160))
    write_text(table, "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n")
    draw(report).savefig(figure, dpi=100, metadata={"Software": None})
    return numbers, table, figure


def timed(calls: Mapping[Candidate, Call], settings: Settings, what: str) -> dict[Candidate, Timing]:
    """Time calls, interleaved, `settings.rounds` times each or until `settings.seconds` are over.

    One round more, in front, warms up and tells how long a round takes. Between two calls everybody rests, since
    threads of one runtime spin for a while before they sleep, and would be in the way of another's.
    """
    numbered: dict[str, Call] = {}
    for number, call in enumerate(calls.values()):
        numbered |= {f"rest {number}": partial(time.sleep, REST), str(number): call}
    trial = race(numbered, rounds=1, warmup=0, what=f"Warming up {what}")
    each = 1e-3 * sum(timing.median_ms for timing in trial.values())
    affordable = max(LEAST, int(settings.seconds / max(each, 1e-9)))
    timings = race(numbered, rounds=min(settings.rounds, affordable), warmup=0, what=f"Timing {what}")
    return {candidate: timings[str(number)] for number, candidate in enumerate(calls)}


def _with_race(report: Report, cell: Cell, settings: Settings, known: dict[str, Networks]) -> Report:
    """The report with one more race; `known` keeps the networks of one subject, since all would crowd the memory."""
    # Compiled code of earlier cells counts against a limit, beyond which torch falls back to eager silently.
    torch.compiler.reset()
    subject = SUBJECTS[cell.subject]
    found = ()
    if isinstance(subject, Layer):
        entries = list(layer_entries(subject, cell))
    else:
        if cell.subject not in known:
            known.clear()
            known[cell.subject] = build(subject, settings.elastic)
        entries = list(vision_entries(subject, known[cell.subject], cell, settings))
        if settings.operators and cell.work == "predict":
            found = operators(subject, known[cell.subject], cell, settings)
    calls: dict[Candidate, Call] = {}
    absent = []
    for candidate, make in watch(entries, total=len(entries), what=f"Preparing {cell.title}"):
        try:
            calls[candidate] = make()
        except runtimes.UnavailableError as error:
            absent.append(Absent(cell=cell.title, name=candidate.name, budget=candidate.budget, reason=str(error)))
    rows = judge(cell, timed(calls, settings, cell.title), report.rates)
    return replace(
        report,
        rows=(*report.rows, *rows),
        absent=(*report.absent, *absent),
        operators=(*report.operators, *found),
    )


def _sources() -> str:
    """SHA-256 of the library and the benchmarks."""
    digest = hashlib.sha256()
    for folder in (Path(nestor.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder.parent)).encode() + file.read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str | None]:
    reach_rivals()
    path = runtimes.compiler()
    found = {"nestor": nestor.__version__, "compiler": None if path is None else Path(path).name}
    return found | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
