"""What networks reached at each of their budgets, over several runs: gathered, averaged and made ready to be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, TypeVar

from nestor.measure.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Key = TypeVar("Key", str, float)
Value = TypeVar("Value")


def gathered(runs: Sequence[Mapping[str, Mapping[Key, float]]]) -> dict[str, dict[Key, list[float]]]:
    """One value for each run, by name and budget, of runs with one value each by name and budget.

    Raises:
        ValueError: when there is no run, or not all have the same names and budgets.
    """
    places = [{name: at.keys() for name, at in run.items()} for run in runs]
    if not places or any(each != places[0] for each in places):
        raise ValueError(
            f"runs must be one or more, with values of the same names at the same budgets; got {len(runs)}. "
            "Gather those of one proof."
        )
    return {name: {budget: [run[name][budget] for run in runs] for budget in at} for name, at in runs[0].items()}


def joined(pieces: Sequence[tuple[int, str]], found: Sequence[Mapping[str, Value]]) -> list[dict[str, Value]]:
    """Everything that was found in each run, by name, runs in the order in which they first come.

    Args:
        pieces: of the work: which run, and which part of it.
        found: in each piece, by name; parts of one run have different names.

    Raises:
        ValueError: when there are more or fewer pieces than findings, or two parts of a run share a name.
    """
    runs: dict[int, dict[str, Value]] = {run: {} for run, _ in pieces}
    for (run, part), values in zip(pieces, found, strict=True):
        if twice := runs[run].keys() & values.keys():
            raise ValueError(f"parts of a run must find different things; {part!r} found {sorted(twice)} again.")
        runs[run].update(values)
    return list(runs.values())


def numbered(found: Mapping[str, Mapping[str, Value]]) -> dict[str, dict[float, Value]]:
    """The same with budgets as numbers, which JSON holds as words.

    Raises:
        ValueError: when one is no number.
    """
    return {name: {float(budget): value for budget, value in at.items()} for name, at in found.items()}


def averages(found: Mapping[str, Mapping[Key, Sequence[float]]]) -> dict[str, dict[Key, float]]:
    """The mean over the runs, by name and budget.

    Raises:
        ValueError: when a budget has no run.
    """
    return {name: {budget: mean(values) for budget, values in at.items()} for name, at in found.items()}


def of_kind(
    runs: Sequence[Mapping[str, Mapping[Key, Mapping[str, Value]]]], kind: str
) -> list[dict[str, dict[Key, Value]]]:
    """The values of one kind alone, where each run has several by name and budget.

    Raises:
        KeyError: a value of this kind is missing.
    """
    return [{name: {b: values[kind] for b, values in at.items()} for name, at in run.items()} for run in runs]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two networks at one budget: `ours` is the value of `network`, `theirs` that of its `rival`."""

    network: str
    rival: str
    budget: float
    ours: float
    theirs: float

    @property
    def told(self) -> str:
        """Who is compared, and where, for the text of a claim."""
        return f"at {self.budget}, {self.network} against {self.rival}"


def against(
    values: Mapping[str, Mapping[float, float]], network: str, rivals: Iterable[str], budgets: Sequence[float]
) -> Iterator[Pair]:
    """One network beside each rival in turn, at those of the budgets where the rival has a value.

    Args:
        values: by name and budget.
        network: has a value wherever a rival has.
        rivals: other names.
        budgets: at which they are compared.

    Raises:
        KeyError: there is no such network, or it lacks a value that a rival has.
    """
    for rival in rivals:
        for b in budgets:
            if b in values[rival]:
                ours, theirs = values[network][b], values[rival][b]
                yield Pair(network=network, rival=rival, budget=b, ours=ours, theirs=theirs)


def over_budgets(
    title: str,
    upward: str,
    lines: Mapping[str, Mapping[float, Sequence[float]]],
    *,
    levels: Mapping[str, Sequence[float]] | None = None,
    least: float | None = None,
) -> Repeats:
    """Curves over the budget; what each argument is stands with `Repeats`."""
    across = "budget, share of the dense network's multiply-accumulates"
    return Repeats(title=title, across=across, upward=upward, lines=lines, levels=levels or {}, least=least)


def over_runs(
    runs: Sequence[Mapping[str, Mapping[str, float]]],
    *,
    title: str,
    dense: str,
    told: str = "accuracy",
    whole: str | None = None,
    without: Sequence[str] = (),
) -> Repeats:
    """Curves of several seeds over the budget, and the dense network's value at full budget as a level line.

    Args:
        runs: one for each seed, with one value by name and budget.
        title: what is shown; how many seeds there are is added.
        dense: the network that gives the level; its other budgets are drawn as a line.
        told: what the values are, of the test part.
        whole: the vertical axis starts a little below this network's lowest value, and may cut off others'; unless
            given it shows all.
        without: networks that are not drawn.

    Raises:
        ValueError: as in `gathered`.
        KeyError: one of the two networks is missing, or the dense one has no value at full budget.
    """
    found = numbered(gathered(runs))
    full = found[dense].pop(1.0)
    return over_budgets(
        f"{title}, {len(runs)} seeds",
        f"{told}, test part",
        {name: points for name, points in found.items() if name not in without},
        levels={"dense": full},
        least=None if whole is None else min(min(values) for values in found[whole].values()) - 0.03,
    )
