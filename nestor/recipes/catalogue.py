"""Every published system that Nestor is to contain, and how far each has come."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nestor.recipes.evidence import find, names, sources

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
        idea: of its authors.
        claim: what they say that it reaches.
    """

    name: str
    title: str
    arxiv: str
    year: int
    field: str
    idea: str
    claim: str

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes that prove it; none where it is not built yet."""
        return _recipes().get(self.arxiv, ())


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a system has come: `works` when all claims of all its recipes hold by current evidence, else `partly`.

    Attributes:
        state: one of STATES; `not yet` for a system without a recipe.
        evidence: what the last full proof of each recipe found, as JSON gives it; those that have none are left out.
        current: whether all evidence was made with the sources as they are.
    """

    state: str
    evidence: tuple[dict, ...] = ()
    current: bool = False


@cache
def systems() -> tuple[System, ...]:
    """All of them, by field."""
    text = Path(__file__).with_name("published.csv").read_text(encoding="utf-8")
    return tuple(System(**{**row, "year": int(row["year"])}) for row in csv.DictReader(text.splitlines()))


def system(name: str) -> System:
    """The system of this name, or of the recipe of this name.

    Raises:
        ValueError: there is none.
    """
    for known in systems():
        if name.casefold() in (known.name.casefold(), *known.recipes, known.arxiv):
            return known
    raise ValueError(f"{name!r} is no published system that is known here. `nestor recipes` lists them all.")


def recipes_of(name: str) -> tuple[str, ...]:
    """Names of the recipes that a name stands for: a recipe, a system or the number of its paper.

    Raises:
        ValueError: nothing is known by this name, or the system is not built yet.
    """
    if name in names():
        return (name,)
    found = system(name)
    if not found.recipes:
        raise ValueError(f"{found.name} is not built yet, so that nothing can be proved. See `nestor recipes`.")
    return found.recipes


def state(known: System, evidence: Path) -> State:
    """How far a system has come by the evidence in this folder.

    Raises:
        ValueError: its evidence cannot be read.
    """
    if not known.recipes:
        return State(state="not yet")
    found = tuple(_read(evidence / f"{name}.json") for name in known.recipes if (evidence / f"{name}.json").is_file())
    holds = len(found) == len(known.recipes) and all(claim["holds"] for each in found for claim in each["claims"])
    current = bool(found) and all(each["sources"] == sources(each["recipe"]) for each in found)
    return State(state="works" if holds and current else "partly", evidence=found, current=current)


def _read(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        told = [isinstance(claim["holds"], bool) for claim in record["claims"]]
        if record["recipe"] != path.stem or not isinstance(record["sources"], str) or not told or not all(told):
            raise ValueError("it is not whole")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no evidence ({error!r}). Run `nestor prove {path.stem}` again.") from error
    return record


@cache
def _recipes() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in names():
        found[find(name).ARXIV] = (*found.get(find(name).ARXIV, ()), name)
    return found
