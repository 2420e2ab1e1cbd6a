"""`nestor recipes` and `nestor prove`: published systems and what was measured of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nestor.cli.console import out as results


def recipes() -> None:
    """List the published systems that are built."""
    from rich.table import Table

    from nestor.recipes.base import find, names

    table = Table("name", "paper", "title")
    for name in names():
        recipe = find(name)
        table.add_row(name, recipe.ARXIV, recipe.TITLE)
    results().print(table)


def prove(
    name: Annotated[str, typer.Argument(help="A recipe, see `nestor recipes`.")],
    quick: Annotated[bool, typer.Option("--quick", help="Small settings; the evidence goes below --runs.")] = False,
    evidence: Annotated[Path, typer.Option("--evidence", help="Folder of the evidence.")] = Path("evidence"),
    runs: Annotated[Path, typer.Option("--runs", help="Folder of checkpoints.")] = Path("runs"),
) -> None:
    """Run a recipe's proof and write its evidence; interrupted, it goes on where it was."""
    from rich.table import Table

    from nestor.recipes.base import prove as run

    target = run(name, quick=quick, evidence=evidence, runs=runs)
    table = Table("claim", "found", "", "wanted", "holds")
    for claim in json.loads(target.read_text())["claims"]:
        verdict = "yes" if claim["holds"] else "NO"
        table.add_row(claim["text"], f"{claim['left']:.4g}", claim["relation"], f"{claim['right']:.4g}", verdict)
    results().print(table)
    results().print(f"Evidence: {target}", markup=False, soft_wrap=True)
