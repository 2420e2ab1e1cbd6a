"""Pages of the published systems: a table of all, and one page for each recipe that is built."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.recipes.catalogue import STATES, state, systems
from nestor.recipes.evidence import find, names, sources

if TYPE_CHECKING:
    from nestor.recipes.catalogue import State, System

EVIDENCE = Path(__file__).parents[2] / "evidence"
MARKS = {"works": "● works", "partly": "◐ partly", "not yet": "○ not yet"}


@cache
def pages(evidence: Path = EVIDENCE) -> dict[str, str]:
    """Markdown of the pages, by path."""
    return {"systems/index.md": _index(evidence)} | {f"systems/{name}.md": _recipe(name, evidence) for name in names()}


def figures(evidence: Path = EVIDENCE) -> dict[str, bytes]:
    """What proofs drew, by path."""
    return {f"systems/{path.name}": path.read_bytes() for name in names() for path in _drawn(name, evidence)}


def record(name: str, evidence: Path = EVIDENCE) -> dict[str, Any] | None:
    """What the last full proof of a recipe found; None where there was none."""
    path = evidence / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def held(records: tuple[dict[str, Any], ...]) -> str:
    """How many of all claims hold, in words; nothing where there are none."""
    claims = [claim["holds"] for each in records for claim in each["claims"]]
    return f"{sum(claims)} of {len(claims)}" if claims else ""


def currency(found: dict[str, Any]) -> str:
    """Whether evidence was made with the sources as they are, in words."""
    return "the sources as they are" if found["sources"] == sources(found["recipe"]) else "earlier sources"


def _index(evidence: Path) -> str:
    known = [(each, state(each, evidence)) for each in systems()]
    counts = ", ".join(f"{sum(at.state == kind for _, at in known)} {kind}" for kind in STATES)
    own = [name for name in names() if not find(name).ARXIV]
    parts = [
        "# Systems",
        f"{len(known)} published systems that Nestor is to contain: {counts}.",
        "*Works*: every claim of every proof holds, by evidence of the sources as they are. *Partly*: it is built. "
        "Claims that do not hold are shown as such. "
        "The same list in a terminal: `nestor recipes`.",
    ]
    for field, group in groupby(known, key=lambda pair: pair[0].field):
        parts += [f"## {field.capitalize()}", _table(list(group))]
    if own:
        links = ", ".join(f"[{name}]({name}.md)" for name in own)
        parts += ["## Nestor's own", f"Proofs that no paper asked for: {links}."]
    return "\n\n".join(parts) + "\n"


def _table(known: list[tuple[System, State]]) -> str:
    rows = ["| system | state | claims that hold | evidence | recipe | paper |", "|" + " --- |" * 6]
    for system, at in known:
        links = ", ".join(f"[{name}]({name}.md)" for name in system.recipes)
        made = ("current" if at.current else "of earlier sources") if at.evidence else ""
        paper = f"[{system.arxiv}](https://arxiv.org/abs/{system.arxiv}), {system.year}"
        rows.append("| " + " | ".join((system.name, MARKS[at.state], held(at.evidence), made, links, paper)) + " |")
    return "\n".join(rows)


def _recipe(name: str, evidence: Path) -> str:
    recipe, found = find(name), record(name, evidence)
    paper = f"Paper: [arXiv {recipe.ARXIV}](https://arxiv.org/abs/{recipe.ARXIV})." if recipe.ARXIV else "No paper."
    parts = [f"---\ntitle: {name}\n---\n# {recipe.TITLE}", f"**{recipe.IDEA}**", paper]
    parts += [f"Published claim: {each.claim}" for each in systems() if name in each.recipes]
    parts.append("## Mechanism")
    parts += [_mechanism(recipe.__doc__ or ""), "## Claims"]
    if found is None:
        parts.append("No full proof was run yet. This one makes the evidence:")
    else:
        parts.append(f"{held((found,))} hold.\n\n{_claims(found)}")
    parts += [f"![What the proof drew]({path.name}){{ .chart }}" for path in _drawn(name, evidence)]
    parts += ["## Run it", f"```bash\nnestor prove {name}  # --quick: the exact claims only, in seconds\n```"]
    if found is not None:
        parts.append(
            f"It took {found['seconds'] / 60:.0f} minutes on {found['date']} with {found['machine']['threads']} threads"
            f" of {found['machine']['processor']}, torch {found['machine']['torch']}, and was made with"
            f" {currency(found)}."
        )
    return "\n\n".join(parts) + "\n"


def _mechanism(docstring: str) -> str:
    # Its first paragraphs are the title and the command, which the page has already; lists need an empty line before.
    paragraphs = docstring.strip().split("\n\n")[1:]
    told = [part for part in paragraphs if "Command: `" not in part]
    return re.sub(r"(?<=:)\n(?=- )", "\n\n", "\n\n".join(told))


def _claims(found: dict[str, Any]) -> str:
    rows = ["| claim | found | | wanted | holds |", "| --- | ---: | :-: | ---: | --- |"]
    for claim in found["claims"]:
        relation = claim["relation"].replace("<=", "≤").replace(">=", "≥").replace("<", "&lt;")
        verdict = "yes" if claim["holds"] else "**no**"
        rows.append(f"| {claim['text']} | {claim['left']:.4g} | {relation} | {claim['right']:.4g} | {verdict} |")
    return "\n".join(rows)


def _drawn(name: str, evidence: Path) -> list[Path]:
    return sorted([*evidence.glob(f"{name}.png"), *evidence.glob(f"{name}-*.png")])
