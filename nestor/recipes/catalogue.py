"""Every published system that Nestor is to contain, and how far each has come."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nestor.recipes.base import find, names, sources

STATES = ("works", "partly", "not yet")


@dataclass(frozen=True, kw_only=True)
class System:
    """A published system.

    Attributes:
        name: as its authors call it.
        title: of the paper.
        arxiv: number of the paper.
        year: of the paper.
        field: what it is about.
    """

    name: str
    title: str
    arxiv: str
    year: int
    field: str

    @property
    def recipe(self) -> str | None:
        """Name of the recipe that builds it; None where there is none yet."""
        return _recipes().get(self.arxiv)


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a system has come: `works` when all claims of its evidence hold, `partly` when it is built, `not yet`.

    Attributes:
        state: one of STATES.
        evidence: what its last full proof found, as JSON gives it; None where there is none.
        current: whether the evidence was made with the sources as they are.
    """

    state: str
    evidence: dict | None = None
    current: bool = False


@cache
def systems() -> tuple[System, ...]:
    """All of them, by field."""
    text = Path(__file__).with_name("published.csv").read_text(encoding="utf-8")
    return tuple(
        System(name=row["name"], title=row["title"], arxiv=row["arxiv"], year=int(row["year"]), field=row["field"])
        for row in csv.DictReader(text.splitlines())
    )


def system(name: str) -> System:
    """The system of this name, or of the recipe of this name.

    Raises:
        ValueError: there is none.
    """
    for known in systems():
        if name.casefold() in (known.name.casefold(), known.recipe, known.arxiv):
            return known
    raise ValueError(f"{name!r} is no published system that is known here. `nestor recipes` lists them all.")


def state(known: System, evidence: Path) -> State:
    """How far a system has come by the evidence in this folder.

    Raises:
        ValueError: its evidence cannot be read.
    """
    if known.recipe is None:
        return State(state="not yet")
    path = evidence / f"{known.recipe}.json"
    if not path.is_file():
        return State(state="partly")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        holds = bool(record["claims"]) and all(claim["holds"] for claim in record["claims"])
        current = record["sources"] == sources(known.recipe)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no evidence ({error!r}). Run `nestor prove {known.recipe}` again.") from error
    return State(state="works" if holds else "partly", evidence=record, current=current)


@cache
def _recipes() -> dict[str, str]:
    return {find(name).ARXIV: name for name in names()}
