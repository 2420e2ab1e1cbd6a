"""What a load test says: one line for each load, which claims hold, a table and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from benchmarks.serve_traffic import Sample

SETTLE = 5.0
ELASTIC = "elastic"
# What must hold: seconds until full budget is back, milliseconds of a refusal, share of the bare network's throughput,
# and by how much memory may have grown from the middle third of a soak to its last.
BACK, TOLD, SHARE, GROWTH = 10.0, 50.0, 0.9, 0.02


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one system did at one load, after it had settled; milliseconds of those that were answered."""

    system: str
    round: int
    step: int
    factor: float
    offered: int
    answered: int
    refused: int
    failed: int
    kept: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    refused_p95_ms: float
    budget: float
    accuracy: float


def summary(
    samples: Sequence[Sample], *, system: str, turn: int, factors: Sequence[float], seconds: float, target: float
) -> list[Summary]:
    """One line for each step; the first seconds of a step, in which a server settles, are left out."""
    found = []
    for step, factor in enumerate(factors):
        settled = step * seconds + min(SETTLE, seconds / 2)
        mine = [sample for sample in samples if sample.step == step and sample.due >= settled]
        good = [sample for sample in mine if sample.status == 200]
        taken = sorted(1e3 * sample.seconds for sample in good) or [math.nan]
        sent_away = sorted(1e3 * sample.seconds for sample in mine if sample.status == 429) or [math.nan]
        count = max(1, len(good))
        found.append(
            Summary(
                system=system,
                round=turn,
                step=step,
                factor=factor,
                offered=len(mine),
                answered=len(good),
                refused=sum(sample.status == 429 for sample in mine),
                failed=sum(sample.status not in (200, 429) for sample in mine),
                kept=sum(sample.seconds <= target for sample in good) / max(1, len(mine)),
                p50_ms=taken[int(0.5 * len(taken))],
                p95_ms=taken[int(0.95 * len(taken))],
                p99_ms=taken[int(0.99 * len(taken))],
                refused_p95_ms=sent_away[int(0.95 * len(sent_away))],
                budget=sum(sample.budget for sample in good) / count,
                accuracy=sum(sample.right for sample in good) / count,
            )
        )
    return found


def recovery(samples: Sequence[Sample], begin: float, top: float) -> float | None:
    """Seconds from `begin` to the first of the answers that all have the top budget; None if the last has less."""
    later = [sample for sample in samples if sample.due >= begin and sample.status == 200]
    lower = [sample.due for sample in later if sample.budget < top]
    if not later or later[-1].budget < top:
        return None
    return max(lower) - begin if lower else 0.0


def accuracy(found: Sequence[Summary], system: str) -> float:
    """Of all that a system answered, at all loads."""
    mine = [line for line in found if line.system == system and line.answered]
    return sum(line.accuracy * line.answered for line in mine) / max(1, sum(line.answered for line in mine))


def claims(
    found: Sequence[Summary],
    *,
    full: str,
    target: float,
    recovered: Sequence[float | None],
    beyond: Summary | None = None,
    served: float | None = None,
    bare: float | None = None,
) -> dict[str, bool | None]:
    """What an elastic server is for, and whether each was so; None where it was not measured or nothing compares.

    Args:
        found: summaries of the elastic server and of fixed ones.
        full: the fixed system of full budget.
        target: seconds.
        recovered: seconds until full budget was back, for each sweep.
        beyond: what became of more traffic than the least budget bears.
        served: pictures a second of a server at full budget.
        bare: of the network alone, in batches of the same size.
    """
    mine = [line for line in found if line.system == ELASTIC]
    others = {line.system for line in found} - {ELASTIC}
    kept = {
        system: all(line.p95_ms <= 1e3 * target and not line.failed for line in found if line.system == system)
        for system in (ELASTIC, *others)
    }
    best = max((accuracy(found, system) for system in others if kept[system]), default=None)
    return {
        "elastic keeps its target at every load": kept[ELASTIC],
        "elastic loses nobody": not any(line.failed for line in mine),
        "elastic refuses nobody": not any(line.refused for line in mine),
        "full budget breaks its target": not kept[full],
        "full budget is back soon": bool(recovered) and all(each is not None and each <= BACK for each in recovered),
        "accuracy is at least that of the best fixed budget that keeps the target": None
        if best is None
        else accuracy(found, ELASTIC) >= best,
        "beyond the least budget, whoever is refused is told so at once": None
        if beyond is None
        else beyond.refused > 0 and not beyond.failed and beyond.refused_p95_ms <= TOLD,
        "beyond the least budget, whoever is admitted is in time": None
        if beyond is None
        else beyond.p95_ms <= 1e3 * target,
        "throughput is near the bare network's": None if served is None or bare is None else served >= SHARE * bare,
    }


def flat(memory: Sequence[float]) -> bool:
    """Whether memory had stopped to grow: its last third against the one before."""
    third = len(memory) // 3
    middle, last = memory[third : 2 * third], memory[-third:]
    return third > 0 and sum(last) <= (1 + GROWTH) * sum(middle)


def table(found: Sequence[Summary]) -> str:
    """The lines as a table of Markdown."""
    head = ("system", "load", "p95, ms", "budget", "accuracy", "in time", "refused", "failed", "offered")
    rows = [
        (
            line.system,
            f"{line.factor:g}",
            f"{line.p95_ms:.0f}",
            f"{line.budget:.2f}",
            f"{line.accuracy:.3f}",
            f"{line.kept:.1%}",
            *map(str, (line.refused, line.failed, line.offered)),
        )
        for line in found
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)) + "\n"


def draw(runs: dict[str, list[Sample]], *, seconds: float, factors: Sequence[float], target: float) -> Figure:
    """Over time: latency of the slowest in twenty, budget, and what was refused, one line for each system."""
    from matplotlib.figure import Figure

    from nestor.measure.draw import COLOURS, GREY

    figure = Figure(figsize=(8, 7), layout="constrained")
    late, given, lost = figure.subplots(3, 1, sharex=True)
    for (system, samples), colour in zip(runs.items(), COLOURS, strict=False):
        ends = [number + 0.5 for number in range(int(seconds * len(factors)))]
        bins = [[sample for sample in samples if abs(sample.due - end) <= 0.5] for end in ends]
        good = [[sample for sample in each if sample.status == 200] for each in bins]
        slow = [sorted(1e3 * one.seconds for one in each)[int(0.95 * len(each))] if each else None for each in good]
        mean = [sum(one.budget for one in each) / len(each) if each else None for each in good]
        gone = [100 * (1 - len(ok) / len(each)) if each else None for ok, each in zip(good, bins, strict=True)]
        for axes, values in ((late, slow), (given, mean), (lost, gone)):
            axes.plot(ends, [float("nan") if value is None else value for value in values], color=colour, label=system)
    late.axhline(1e3 * target, color=GREY, linestyle="--", linewidth=1, label="target")
    late.set_yscale("log")
    late.set_ylabel("p95, ms")
    given.set_ylabel("mean budget")
    given.set_ylim(0, 1.05)
    lost.set_ylabel("refused or lost, %")
    lost.set_xlabel("seconds; shaded by load")
    for axes in (late, given, lost):
        axes.spines[["top", "right"]].set_visible(False)
        for step, factor in enumerate(factors):
            axes.axvspan(step * seconds, (step + 1) * seconds, color=GREY, alpha=0.07 * factor, linewidth=0)
    for step, factor in enumerate(factors):
        late.annotate(f"{factor:g} x", ((step + 0.5) * seconds, 1.0), xycoords=("data", "axes fraction"), ha="center")
    late.legend(frameon=False, loc="upper left")
    return figure
