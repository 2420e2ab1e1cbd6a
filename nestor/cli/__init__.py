"""The command line: one module for each command of `nestor`."""

from __future__ import annotations

from typing import Annotated

import typer

from nestor import __version__
from nestor.cli.clock import clock
from nestor.cli.console import Commands
from nestor.cli.demo import demo
from nestor.cli.doctor import doctor
from nestor.cli.export import export
from nestor.cli.fit import fit
from nestor.cli.nest import nest
from nestor.cli.profile import profile
from nestor.cli.quantize import quantize
from nestor.cli.recipes import prove, recipes
from nestor.cli.serve import serve
from nestor.cli.show import show

app = typer.Typer(
    name="nestor",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (nest, fit, profile, clock, quantize, show, demo, export, serve, recipes, prove, doctor):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nestor {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One vision transformer, one file of weights, any compute budget."""


def main() -> None:
    """Run the command line."""
    app(prog_name="nestor")
