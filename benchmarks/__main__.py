"""`python -m benchmarks`: race, print, keep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import choose
from nestor.cli.console import Commands, say
from nestor.cli.console import out as results

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/bench")

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            help="Of nano, Ti, S, B, each at every batch. By default S, and Ti and B at the largest batch.",
            show_default=False,
        ),
    ] = None,
    budgets: Annotated[str | None, typer.Option("--budgets", help="By default 1,.7,.5,.3.", show_default=False)] = None,
    batches: Annotated[str | None, typer.Option("--batches", help="By default 1,16.", show_default=False)] = None,
    precisions: Annotated[
        str | None, typer.Option("--precisions", help="By default float32,bfloat16.", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="At most, by default 10; slow races take fewer.", show_default=False)
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="A tiny network, few rounds, nothing compiled, to see that all runs; kept in runs/bench."
        ),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Tell where the time of one forward pass goes, by operator.")
    ] = False,
) -> None:
    """Race elastic networks against the best dense ones, token merging and the machine's own limits."""
    chosen = choose(sizes, budgets, batches, precisions, rounds, quick=quick, profile=profile)

    # torch's profiler reports its own beginning and end on the terminal, unless it is told so before torch is loaded.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from benchmarks.keep import keep
    from benchmarks.show import show
    from benchmarks.speed import measure

    report = measure(chosen, say)
    show(report, results())
    for file in keep(report, RUNS if quick else RESULTS, RUNS):
        say(f"Kept: {file}")


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
