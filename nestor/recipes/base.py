"""What a recipe is: a published system built from parts, and the claims that it proves."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from nestor.measure.frontier import reached

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

RELATIONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement with two numbers; `exact` ones hold on any machine and seed and belong to the tests."""

    text: str
    left: float
    relation: str
    right: float
    exact: bool = False

    @property
    def holds(self) -> bool:
        """Whether the relation is true of the two numbers."""
        return bool(RELATIONS[self.relation](self.left, self.right))


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a recipe found.

    Attributes:
        claims: that it makes.
        details: the curves and tables behind them, as JSON can hold them.
        figures: by name, what only the proof itself can draw, because it needs the networks; kept beside the evidence.
    """

    claims: tuple[Claim, ...]
    details: Mapping[str, Any]
    figures: Mapping[str, Figure] = field(default_factory=dict)


class Recipe(Protocol):
    """A module in this folder; the folder is the registry.

    `TITLE`, `ARXIV` (empty where there is no paper) and `IDEA` describe it; `Settings` is a frozen dataclass with a
    class method `quick()` of about five seconds. A recipe that compares has `curves(details)` too: one Repeats (over a
    dial) or Dots (a row for each network), several of a kind to stand side by side, or None where nothing was trained.
    """

    TITLE: str
    ARXIV: str
    IDEA: str
    Settings: Any

    def build(self, settings: Any) -> Any:
        """The system itself."""
        ...

    def prove(self, settings: Any, folder: Path | None = None) -> Proof:
        """Run the proof; `folder` keeps checkpoints, so that it may be interrupted."""
        ...


def claims(rows: Mapping[str, tuple[float, str, float]], *, exact: bool = False) -> list[Claim]:
    """Claims from what each says: the number, the relation, and what it is held against.

    Args:
        rows: by text.
        exact: whether they hold on any machine and seed.

    Raises:
        ValueError: a relation is not known.
    """
    if unknown := {relation for _, relation, _ in rows.values()} - RELATIONS.keys():
        raise ValueError(f"a relation must be one of {', '.join(RELATIONS)}; got {', '.join(sorted(unknown))}.")
    return [Claim(text=t, left=a, relation=sign, right=b, exact=exact) for t, (a, sign, b) in rows.items()]


def in_time(
    what: str,
    mine: Mapping[float, float],
    rival: Mapping[float, float],
    took: Mapping[str, Mapping[str, Mapping[float, float]]],
    names: tuple[str, str],
) -> list[Claim]:
    """Claims that a rival reaches no more in the time that a network takes at each of its budgets below 1.

    Budgets at which the network is faster than the rival ever is are left out, since nothing compares.

    Args:
        what: is compared.
        mine, rival: values by budget.
        took: milliseconds by precision, network and budget, as from `nestor.measure.frontier`.
        names: of the two among the networks.
    """
    own, other = names
    return [
        Claim(
            text=f"{what}, {own} at {budget} against {other} in the same time, {precision}",
            left=mine[budget],
            relation=">=",
            right=reached(at[other], rival, time),
        )
        for precision, at in took.items()
        for budget, time in at[own].items()
        if budget < 1 and time >= min(at[other].values())
    ]
