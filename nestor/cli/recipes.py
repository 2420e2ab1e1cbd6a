"""`nestor recipes` and `nestor prove`: published systems and what was measured of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestor.cli.console import give, say
from nestor.cli.console import out as results
from nestor.cli.options import AsJson

if TYPE_CHECKING:
    from rich.table import Table

    from nestor.recipes.catalogue import System

Evidence = Annotated[Path, typer.Option("--evidence", help="Folder of the evidence.")]


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A system, its recipe or its paper's number.", show_default=False)
    ] = None,
    evidence: Evidence = Path("evidence"),
    as_json: AsJson = False,
) -> None:
    """List the published systems and how far each has come, or explain one of them.

    Example: nestor recipes "Soft MoE"
    """
    from nestor.recipes.catalogue import STATES, state, system, systems

    known = systems() if name is None else (system(name),)
    states = [state(each, evidence) for each in known]
    if as_json:
        found = [asdict(k) | {"recipes": k.recipes} | asdict(s) for k, s in zip(known, states, strict=True)]
        give(found if name is None else found[0])
    elif name is not None:
        _explain(known[0], evidence)
    else:
        table = _table("name", "paper", "field", "recipe", "state", "claims that hold", "evidence")
        for each, at in zip(known, states, strict=True):
            made = ("current" if at.current else "of earlier sources") if at.evidence else ""
            row = (each.name, each.arxiv, each.field, ", ".join(each.recipes), at.state, _held(at.evidence), made)
            table.add_row(*row)
        results().print(table)
        counts = Counter(at.state for at in states)
        results().print(", ".join(f"{counts[kind]} {kind}" for kind in STATES) + f" of {len(known)}")
        if not evidence.is_dir():
            say(f"No folder {evidence}, and so no evidence: --evidence names it, or go to where Nestor was cloned.")


def prove(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A recipe or a system, see `nestor recipes`; by default all recipes whose evidence is missing or of "
            "earlier sources.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small settings; the evidence goes below --runs.")] = False,
    evidence: Evidence = Path("evidence"),
    runs: Annotated[Path, typer.Option("--runs", help="Folder of checkpoints.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Run a recipe's proof and write its evidence; interrupted, it goes on where it was.

    Example: nestor prove mone_pretrained
    """
    from nestor.recipes.catalogue import recipes_of
    from nestor.recipes.evidence import due
    from nestor.recipes.evidence import prove as run

    records, chosen = [], due(evidence) if name is None else recipes_of(name)
    for each in chosen:
        target = run(each, quick=quick, evidence=evidence, runs=runs)
        records.append({"evidence": str(target), **json.loads(target.read_text())})
        if not as_json:
            results().print(_claims(records[-1]))
            results().print(f"Evidence: {target}", markup=False, soft_wrap=True)
    if as_json:
        give(records[0] if len(chosen) == 1 else records)
    elif not records:
        results().print("All evidence is of the sources as they are.")


def _explain(known: System, evidence: Path) -> None:
    from nestor.recipes.catalogue import state
    from nestor.recipes.evidence import find

    at, told = state(known, evidence), results()
    told.print(f"[bold]{known.name}[/bold]  {known.title} (arXiv {known.arxiv}, {known.year}; {known.field})")
    told.print(known.idea, markup=False)
    told.print(f"Published claim: {known.claim}", markup=False)
    if not known.recipes:
        told.print("Not built yet.")
    records = {record["recipe"]: record for record in at.evidence}
    for name in known.recipes:
        recipe = find(name)
        told.print(f"\n[bold]{name}[/bold]")
        told.print((recipe.__doc__ or "").strip(), markup=False)
        if name in records:
            _tell(name, records[name])
        else:
            told.print(f"No evidence in {evidence}. `nestor prove {name}` makes it.", markup=False)


def _tell(name: str, record: dict) -> None:
    from nestor.recipes.evidence import sources

    results().print(_claims(record))
    made = "the sources as they are" if record["sources"] == sources(name) else "earlier sources"
    results().print(
        f"`nestor prove {name}` took {record['seconds'] / 60:.0f} minutes on {record['date']}, "
        f"on {record['machine']['processor']}, with {made}.",
        markup=False,
    )


def _claims(record: dict) -> Table:
    table = _table("claim", "found", "", "wanted", "holds")
    for claim in record["claims"]:
        verdict = "yes" if claim["holds"] else "NO"
        table.add_row(claim["text"], f"{claim['left']:.4g}", claim["relation"], f"{claim['right']:.4g}", verdict)
    return table


def _held(records: tuple[dict, ...]) -> str:
    claims = [claim["holds"] for record in records for claim in record["claims"]]
    return f"{sum(claims)} of {len(claims)}" if claims else ""


def _table(*columns: str) -> Table:
    from rich.table import Table

    return Table(*columns)
