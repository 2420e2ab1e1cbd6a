"""How the commands speak: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a user can repair; anything else is a fault of ours, or of what is installed.
EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)
FAILED, FAULT, INTERRUPTED = 2, 70, 130
PATIENCE = 2.0


def out() -> Console:
    """Standard output; of several processes, the first speaks."""
    console = Console(quiet=_silent(), highlight=False)
    # A file has no width, and a table in it shall not be folded.
    return console if console.is_terminal else Console(quiet=_silent(), highlight=False, width=200)


def give(value: object) -> None:
    """Print a result as JSON, and nothing else, on standard output."""
    out().print_json(json.dumps(value), highlight=False)


def speaks() -> bool:
    """Whether this process, of several, is the one that speaks and writes."""
    return not _silent()


def say(line: str) -> None:
    """Tell what is being done."""
    Console(stderr=True, quiet=_silent(), highlight=False).print(line, markup=False, soft_wrap=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that work goes on and for how long it has, on a terminal; afterwards say what it took, if it was long."""
    console = Console(stderr=True, quiet=_silent(), highlight=False)
    begin = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield
    if (took := time.monotonic() - begin) >= PATIENCE:
        say(f"{what}: {took:.1f} s")


class Commands(TyperGroup):
    """Commands whose errors are one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take --debug wherever it stands."""
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(each for each in args[:end] if each != "--debug"), *args[end:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for.

        Exits with 2 on an error that a user can repair, with 70 on any other, with 130 on Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            say(str(interrupt) or "Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except EXPECTED as error:
            if ctx.params.get("debug"):
                raise
            _complain(str(error) or type(error).__name__)
            raise typer.Exit(FAILED) from None
        except (typer.TyperException, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            _complain(f"{type(error).__name__}: {error}. This should not happen; --debug shows where it does.")
            raise typer.Exit(FAULT) from None


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False).print(f"Error: {message}", style="red", markup=False, soft_wrap=True)


def _silent() -> bool:
    return os.environ.get("RANK", "0") != "0"
