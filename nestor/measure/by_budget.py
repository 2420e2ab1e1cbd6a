"""What networks reached at each of their budgets, over several runs: gathered, averaged and made ready to be drawn."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, TypeVar

from nestor.measure.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
