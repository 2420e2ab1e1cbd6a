"""What a run of the benchmarks found, as values that go to JSON and come back."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.floor import Matmul, Rates
from benchmarks.settings import Cell
from nestor.measure.clock import Timing

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something to time.

    Attributes:
        name: which network, and how it runs.
        kind: `dense`, `nested` or `merged`; `mixture` or `rival` (somebody else's mixture).
        budget: its own; 1 if it is no dial.
        macs: multiply-accumulates of one item, forward.
        weights: how many have to be read at least; full-width tokens read all of them at any budget.
    """

    name: str
    kind: str
    budget: float
    macs: int
    weights: int


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
        sources: hash of the library and the benchmarks.
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
    rows: tuple[Row, ...] = ()
    absent: tuple[Absent, ...] = ()
    operators: tuple[Operator, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Those that were raced, in order."""
        return tuple(dict.fromkeys(row.cell for row in self.rows))

    @property
    def name(self) -> str:
        """Under which the run is kept: date and a short hash of the sources."""
        return f"{self.date.replace(':', '')}-{self.sources[:8]}"

    @property
    def place(self) -> str:
        """The machine's kind as part of a path; other threads, other machine."""
        return place(self.machine)

    def to_json(self) -> str:
        """As JSON, a line a value and six digits a number, so that histories can be compared by eye."""
        return json.dumps(_rounded({"format": FORMAT, **asdict(self)}), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote.

        Raises:
            ValueError: when it is something else, or of another format.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"a report needs format {FORMAT}; got something else. Measure it again.")
        matmuls = tuple(Matmul(**one) for one in data["rates"]["matmuls"])
        rows = (one | {"cell": Cell(**one["cell"]), "timing": Timing(**one["timing"])} for one in data["rows"])
        return cls(
            **data
            | {
                "rates": Rates(matmuls=matmuls, memory=data["rates"]["memory"]),
                "rows": tuple(Row(**one) for one in rows),
                "absent": tuple(Absent(**one) for one in data["absent"]),
                "operators": tuple(Operator(**one) for one in data["operators"]),
            }
        )


def place(machine: Mapping[str, str]) -> str:
    """A kind of machine as part of a path."""
    plain = re.sub(r"\((?:r|tm|c)\)", " ", f"{machine['processor']} {machine['threads']} threads".lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def judge(cell: Cell, timings: Mapping[Candidate, Timing], rates: Rates) -> tuple[Row, ...]:
    """What the timings of one cell say; the best dense candidate is the denominator.

    Raises:
        ValueError: when no dense candidate was timed.
    """
    dense = {c.name: timing.median_ms for c, timing in timings.items() if c.kind == "dense"}
    if not dense:
        raise ValueError(f"a cell needs at least one dense candidate; {cell.title} has none.")
    best, whole = min(dense.values()), next(c.macs for c in timings if c.kind == "dense")

    def row(c: Candidate, timing: Timing) -> Row:
        speed_up, reduction, floor = best / timing.median_ms, whole / c.macs, rates.floor_ms(cell, c)
        return Row(
            cell=cell,
            name=c.name,
            kind=c.kind,
            budget=c.budget,
            macs=c.macs,
            reduction=reduction,
            timing=timing,
            speed_up=speed_up,
            efficiency=speed_up / reduction,
            against={name: ms / timing.median_ms for name, ms in dense.items()},
            floor_ms=floor,
            over_floor=timing.median_ms / floor,
        )

    return tuple(row(c, timing) for c, timing in timings.items())


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
