"""`python -m benchmarks`: race, print, keep."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.settings import BATCHES, INT8, PRECISIONS, Settings, grid
from nestor.cli import parse
from nestor.cli.console import Commands, say
from nestor.cli.console import out as results

HISTORY = Path(__file__).parent / "history"
RUNS = Path("runs/bench")
OPERATORS = 20

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    everything: Annotated[
        bool, typer.Option("--all", help="Every size, the published shape, all that can be compiled: some hours.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny networks, to see that all runs.")] = False,
    subjects: Annotated[
        str | None, typer.Option("--subjects", help="Only these, such as ViT-S/16,mixture-384.", show_default=False)
    ] = None,
    batches: Annotated[str | None, typer.Option("--batches", help="By default 1,16.", show_default=False)] = None,
    precisions: Annotated[
        str | None, typer.Option("--precisions", help="Of float32, bfloat16 and int8.", show_default=False)
    ] = None,
    budgets: Annotated[str | None, typer.Option("--budgets", help="By default 1,.7,.5,.3.", show_default=False)] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="At most, by default 20; slow races take fewer.", show_default=False)
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Tell where the time of one forward pass goes, by operator.")
    ] = False,
) -> None:
    """Race elastic networks against the best dense ones, token merging and the machine's own limits.

    A run that was interrupted goes on where it was. Runs of the usual extent or of --all are added to
    benchmarks/history, others to runs/bench.
    """
    usual = Settings.quick() if quick else Settings.whole() if everything else Settings()
    chosen = choose(usual, subjects, batches, precisions, budgets, rounds, profile=profile)

    # torch's profiler reports its own beginning and end on the terminal, unless it is told so before torch is loaded.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from benchmarks.show import show
    from benchmarks.speed import keep, measure

    report = measure(chosen, RUNS, say)
    show(report, results())
    for file in keep(report, HISTORY if chosen == usual and not quick else RUNS):
        say(f"Kept: {file}")


def choose(
    usual: Settings,
    subjects: str | None = None,
    batches: str | None = None,
    precisions: str | None = None,
    budgets: str | None = None,
    rounds: int | None = None,
    *,
    profile: bool = False,
) -> Settings:
    """What to measure; as usual where nothing is said.

    Raises:
        ValueError: when something is not known or not possible.
    """
    cells, known = usual.cells, (*PRECISIONS, INT8)
    if precisions and not subjects and not batches:
        wanted = parse.precisions(precisions, known)
        cells = tuple(cell for cell in cells if cell.precision in wanted)
    elif subjects or batches:
        names = subjects.split(",") if subjects else list(dict.fromkeys(cell.subject for cell in cells))
        counts = parse.batches(batches) if batches else BATCHES
        cells = grid(names, counts, parse.precisions(precisions, known) if precisions else PRECISIONS)
    return replace(
        usual,
        cells=cells,
        budgets=parse.budgets(budgets) or usual.budgets,
        rounds=usual.rounds if rounds is None else rounds,
        operators=OPERATORS if profile else 0,
    )


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
