"""What a run of the benchmarks found, as values that go to JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.floor import Rates
    from benchmarks.settings import Cell
    from nestor.measure.clock import Timing

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something to time.

    Attributes:
        name: which network, and how it runs.
        kind: `dense`, `nested` or `merged`.
        budget: its own; 1 if it is dense.
        macs: multiply-accumulates of one picture.
    """

    name: str
    kind: str
    budget: float
    macs: int


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Something that could not be timed, and why."""

    cell: str
    name: str
    budget: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate of one cell.

    Attributes:
        cell: in which it ran.
        name, kind, budget, macs: as in Candidate.
        reduction: the dense network's multiply-accumulates over these.
        timing: milliseconds of a batch.
        speed_up: the best dense candidate's median over this one's.
        efficiency: speed-up over reduction; 1 when nothing is lost on the way.
        against: speed-up over each dense candidate, by name.
        floor_ms: what the machine's best rates would allow.
        over_floor: the median over that.
    """

    cell: Cell
    name: str
    kind: str
    budget: float
    macs: int
    reduction: float
    timing: Timing
    speed_up: float
    efficiency: float
    against: Mapping[str, float]
    floor_ms: float
    over_floor: float


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What one operator of torch takes in one forward pass, its own time without that of operators that it calls."""

    cell: str
    network: str
    operator: str
    calls: int
    ms: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run.

    Attributes:
        date: when it began, ISO without seconds.
        sources: hash of the library's sources.
        seconds: how long it took.
        settings: as given.
        machine, versions: on which and with which packages; None where one is missing.
        rates: what the machine can do.
        rows: what was timed.
        absent: what was not, and why.
        operators: where time went, if that was asked for.
    """

    date: str
    sources: str
    seconds: float
    settings: Mapping[str, Any]
    machine: Mapping[str, str]
    versions: Mapping[str, str | None]
    rates: Rates
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...]
    operators: tuple[Operator, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Those with rows, in order."""
        return tuple(dict.fromkeys(row.cell for row in self.rows))

    @property
    def name(self) -> str:
        """Under which the run is kept: date and a short hash of the sources."""
        return f"{self.date.replace(':', '')}-{self.sources[:8]}"

    @property
    def place(self) -> str:
        """The machine's name as part of a path; other threads, other machine."""
        plain = re.sub(r"\((?:r|tm|c)\)", " ", f"{self.machine['processor']} {self.machine['threads']} threads".lower())
        return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")

    def to_json(self) -> str:
        """As JSON, a line a value and six digits a number, so that histories can be compared by eye."""
        return json.dumps(_rounded({"format": FORMAT, **asdict(self)}), indent=1, allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {name: _rounded(one) for name, one in value.items()}
        case list() | tuple():
            return [_rounded(one) for one in value]
        case _:
            return value
