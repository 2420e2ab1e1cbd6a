"""`nestor clock`: how long each budget takes on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nestor.cli import parse
from nestor.cli.console import give, say, waiting
from nestor.cli.console import out as results
from nestor.cli.options import AsJson, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.latency import LatencyTable


def clock(
    folder: Annotated[Path, typer.Argument(metavar="model", help="A folder saved by Nestor.", show_default=False)],
    size: Size = None,
    batches: Annotated[str, typer.Option("--batches", help="Numbers of pictures of one call.")] = "1",
    precisions: Annotated[str, typer.Option("--precisions", help="Number formats of the weights.")] = "float32",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each budget is timed.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Time a network on this machine and keep the times beside it, so that its budget can be given in milliseconds.

    Example: nestor clock elastic/ --batches 1,16 --precisions float32,bfloat16
    """
    sizes, formats = parse.batches(batches), parse.precisions(precisions)

    import nestor
    from nestor.api import prepare
    from nestor.models.saved import LATENCIES, save_latencies

    folder = folder.expanduser()
    if not prepare.is_saved(folder):
        raise ValueError(
            f"times are kept beside a network that Nestor saved; {folder} holds none. Make one: nestor nest."
        )
    parse.writable_file(folder / LATENCIES)
    with waiting(f"Loading {folder}"):
        model = nestor.load(folder)
    timed = nestor.clock(model, size=size, batches=sizes, precisions=formats, rounds=rounds)
    save_latencies(timed.latencies, folder)
    known = {id(table) for table in model.latencies}
    taken = [table for table in timed.latencies if id(table) not in known]
    if as_json:
        give([asdict(table) for table in taken])
    else:
        results().print(_table(taken))
    say(f"Times: {folder / LATENCIES}. Use them: model.budget = nestor.Latency(ms=...)")


def _table(tables: Sequence[LatencyTable]) -> Table:
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, caption=f"Milliseconds of one call on {tables[0].machine}")
    for name in ("budget", *(f"{table.precision}, batch {table.batch}" for table in tables)):
        shown.add_column(name, justify="right")
    # All were taken on one ladder, since budgets depend on the patches alone.
    for i, budget in enumerate(tables[0].budgets):
        shown.add_row(f"{budget:.3f}", *(f"{table.ms[i]:.3g}" for table in tables))
    return shown
