"""`nestor profile`: what every budget costs and gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nestor.cli import parse
from nestor.cli.console import give, say, waiting
from nestor.cli.console import out as results
from nestor.cli.options import AsJson, Budgets, Data, Folder, Size


def profile(
    model: Folder,
    data: Data,
    budgets: Budgets = None,
    dense: Annotated[
        str | None,
        typer.Option(
            "--dense", help="Any MODEL to compare with; by default the network at full budget.", show_default=False
        ),
    ] = None,
    size: Size = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many pictures.", show_default=False)
    ] = None,
    batches: Annotated[str, typer.Option("--batches", help="Sizes of the batches that are timed.")] = "1,16",
    precisions: Annotated[
        str, typer.Option("--precisions", help="Number formats that are timed.")
    ] = "float32,bfloat16",
    out: Annotated[
        Path | None, typer.Option("--out", help="File for all numbers, as JSON.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="File for the curves: .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure multiply-accumulates, accuracy on held-out pictures, and time against the dense network.

    Example: nestor profile elastic/ --data photos/ --out elastic/profile.json
    """
    wanted = parse.budgets(budgets)
    sizes, formats = parse.batches(batches), parse.precisions(precisions)
    out = None if out is None else parse.writable_file(out)
    plot = None if plot is None else parse.writable_file(plot, ".png", ".svg", ".pdf")
    if plot is not None:
        parse.require_matplotlib()

    import nestor
    from nestor.api import heads, prepare
    from nestor.measure.profile import print_profile
    from nestor.store import write_text

    with waiting(f"Loading {model}"):
        network = nestor.load(str(model))
        other = None if dense is None else nestor.load(dense)
    side = prepare.side(network, size)
    chosen = prepare.feasible(network, wanted, side)
    _, held_out = prepare.parts(network, data, side)
    if held_out.skipped:
        say(f"{len(held_out.skipped)} pictures cannot be read and are left out, first {held_out.skipped[0]}")
    if network.settings.classes and heads.needs_head(network, held_out):
        say(
            f"The head knows {network.settings.classes} classes and the pictures have {len(held_out.classes)}: "
            "measuring likeness to the dense network instead of accuracy. nestor fit gives a fitting head."
        )
    measured = nestor.profile(
        network, held_out, budgets=chosen, dense=other, batches=sizes, precisions=formats, limit=limit
    )
    if as_json:
        give(json.loads(measured.to_json()))
    else:
        print_profile(measured, results())
    if out is not None:
        write_text(out, measured.to_json())
        say(f"Numbers: {out}")
    if plot is not None:
        from nestor.measure.draw import curve

        curve(measured).savefig(plot, bbox_inches="tight", dpi=150)
        say(f"Curves: {plot}")
