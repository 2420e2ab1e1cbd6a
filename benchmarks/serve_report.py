"""What a load test says: one line for each load, which claims hold, and a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.serve_traffic import Sample

SETTLE = 5.0
ELASTIC = "elastic"
# What must hold: share of all requests that are answered in time, seconds until full budget is back, milliseconds of a
# refusal, and share of the bare network's throughput.
PROMISED, BACK, TOLD, SHARE = 0.95, 10.0, 50.0, 0.9
# Answers at less than the top budget that a second may hold and still be at the top, as a share of the budget.
NEARLY = 0.99


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one system did at one load.

    Attributes:
        offered, answered, refused, errors, lost: how many requests; refused are told to come later, errors are of
            the server, lost is whatever else is no answer. Of all of the step.
        untold: refused, but not told when to come back.
        retried: sent again since their connection had been closed as idle.
        kept: share of the requests, refused ones too, that were answered in time once the server had settled.
        p50_ms, p95_ms, p99_ms: of those that were answered once it had settled.
        refused_p95_ms, refused_max_ms: of all that were refused.
        budget: mean, once it had settled.
        accuracy: of those that were answered.
        accuracy_offered: of all requests; whoever got no answer got no right one.
    """

    system: str
    round: int
    step: int
    factor: float
    offered: int
    answered: int
    refused: int
    errors: int
    lost: int
    untold: int
    retried: int
    kept: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    refused_p95_ms: float
    refused_max_ms: float
    budget: float
    accuracy: float
    accuracy_offered: float


def summary(
    samples: Sequence[Sample], *, system: str, turn: int, factors: Sequence[float], seconds: float, target: float
) -> list[Summary]:
    """One line for each step; latency and budget leave out its first seconds, in which a server settles."""
    found = []
    for step, factor in enumerate(factors):
        begin = step * seconds + min(SETTLE, seconds / 2)
        mine = [sample for sample in samples if sample.step == step]
        good = [sample for sample in mine if sample.status == 200]
        settled = [sample for sample in good if sample.due >= begin]
        refusals = [sample for sample in mine if sample.status == 429]
        errors = sum(sample.status >= 500 for sample in mine)
        taken, told = _milliseconds(settled), _milliseconds(refusals)
        right, offered = sum(sample.right for sample in good), max(1, len(mine))
        found.append(
            Summary(
                system=system,
                round=turn,
                step=step,
                factor=factor,
                offered=len(mine),
                answered=len(good),
                refused=len(refusals),
                errors=errors,
                lost=len(mine) - len(good) - len(refusals) - errors,
                untold=sum(not sample.again for sample in refusals),
                retried=sum(sample.retried for sample in mine),
                kept=sum(sample.seconds <= target for sample in settled)
                / max(1, sum(sample.due >= begin for sample in mine)),
                p50_ms=taken[int(0.5 * len(taken))],
                p95_ms=taken[int(0.95 * len(taken))],
                p99_ms=taken[int(0.99 * len(taken))],
                refused_p95_ms=told[int(0.95 * len(told))],
                refused_max_ms=told[-1],
                budget=sum(sample.budget for sample in settled) / max(1, len(settled)),
                accuracy=right / max(1, len(good)),
                accuracy_offered=right / offered,
            )
        )
    return found


def recovery(samples: Sequence[Sample], begin: float, top: float) -> float | None:
    """Seconds from `begin` until the mean budget of a second is at the top, and stays there on average; None if never.

    A second in which nobody was answered says nothing.
    """
    seconds: dict[int, list[float]] = {}
    for sample in samples:
        if sample.due >= begin and sample.status == 200:
            seconds.setdefault(int(sample.due - begin), []).append(sample.budget)
    means = {second: sum(budgets) / len(budgets) for second, budgets in sorted(seconds.items())}
    for second, mean in means.items():
        rest = [each for later, each in means.items() if later >= second]
        if min(mean, sum(rest) / len(rest)) >= NEARLY * top:
            return second + 1.0
    return None


def accuracy(found: Iterable[Summary], system: str, *, offered: bool) -> float:
    """At all loads, of all requests to a system or of those that it answered."""
    mine = [line for line in found if line.system == system]
    right = sum(line.accuracy_offered * line.offered for line in mine)
    return right / max(1, sum(line.offered if offered else line.answered for line in mine))


def keeps(found: Iterable[Summary], system: str) -> bool:
    """Whether at every load 95 of 100 requests, refused ones included, were answered in time, and none was lost."""
    mine = [line for line in found if line.system == system]
    return bool(mine) and all(line.kept >= PROMISED and not line.errors and not line.lost for line in mine)


def best(found: Sequence[Summary]) -> str | None:
    """The fixed system of highest accuracy, of all requests, among those that keep the target."""
    others = [name for name in dict.fromkeys(line.system for line in found) if name != ELASTIC and keeps(found, name)]
    return max(others, key=lambda name: accuracy(found, name, offered=True), default=None)


def claims(
    found: Sequence[Summary], *, full: str, target: float, recovered: Sequence[float | None], beyond: Summary | None
) -> dict[str, bool | None]:
    """What an elastic server is for, and whether each was so; None where it was not measured or nothing compares.

    Args:
        found: summaries of the elastic server and of fixed ones.
        full: the fixed system of full budget.
        target: seconds.
        recovered: seconds until full budget was back, for each sweep.
        beyond: what became of more traffic than the least budget bears.
    """
    mine, rival = [line for line in found if line.system == ELASTIC], best(found)
    held: dict[str, bool | None] = {
        "elastic answers 95 of 100 requests in time at every load": bool(mine)
        and all(line.kept >= PROMISED for line in mine),
        "elastic loses nobody": not any(line.lost for line in mine),
        "elastic fails nobody (5xx)": not any(line.errors for line in mine),
        "elastic refuses nobody": not any(line.refused for line in mine),
        "full budget breaks its target": not keeps(found, full),
        "full budget is back soon": bool(recovered) and all(each is not None and each <= BACK for each in recovered),
        "accuracy is at least that of the best fixed budget that keeps the target": None
        if rival is None
        else accuracy(found, ELASTIC, offered=True) >= accuracy(found, rival, offered=True),
    }
    more = {
        "beyond the least budget, some are refused and nobody is lost": lambda line: (
            line.refused > 0 and not line.lost and not line.errors
        ),
        "beyond the least budget, whoever is refused is told when to come back": lambda line: not line.untold,
        "beyond the least budget, whoever is refused is told so at once": lambda line: line.refused_max_ms <= TOLD,
        "beyond the least budget, whoever is admitted is in time": lambda line: line.p95_ms <= 1e3 * target,
    }
    return held | {name: None if beyond is None else so(beyond) for name, so in more.items()}


def table(found: Sequence[Summary], beyond: Sequence[Summary] = ()) -> str:
    """The lines as a table of Markdown, and what they compare."""
    head = ("system", "load", "p95, ms", "budget", "right of answered", "right of all", "in time", "refused")
    head += ("slowest refusal, ms", "5xx", "lost", "all")
    rows = [
        (
            line.system,
            f"{line.factor:.3g}",
            f"{line.p95_ms:.0f}",
            f"{line.budget:.2f}",
            f"{line.accuracy:.3f}",
            f"{line.accuracy_offered:.3f}",
            f"{line.kept:.1%}",
            f"{line.refused}",
            f"{line.refused_max_ms:.0f}" if line.refused else "",
            *map(str, (line.errors, line.lost, line.offered)),
        )
        for line in (*found, *beyond)
    ]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))
    return f"{lines}\n\n{compared(found)}\n"


def compared(found: Sequence[Summary]) -> str:
    """Which systems were compared, under which promise, and what each got right over all loads."""
    rival, names = best(found), list(dict.fromkeys(line.system for line in found))
    shares = [
        f"{name} {accuracy(found, name, offered=True):.4f} of all requests and "
        f"{accuracy(found, name, offered=False):.4f} of those it answered"
        for name in names
    ]
    return (
        "Every system makes the same promise and refuses whom it cannot answer in time; refused requests count as not "
        "in time and as not right. p95, budget and in time are those of a settled server, all else is of every "
        f"request. Right over all loads: {'; '.join(shares)}. Of the fixed budgets "
        + (f"the best that keeps the target is {rival}." if rival else "none keeps the target.")
    )


def _milliseconds(samples: Iterable[Sample]) -> list[float]:
    """Ascending, and never empty."""
    return sorted(1e3 * sample.seconds for sample in samples) or [math.nan]
