"""`nestor show`: which patch is given which width."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nestor.cli import parse
from nestor.cli.console import give, say, waiting
from nestor.cli.console import out as results
from nestor.cli.options import AsJson, Budgets, Folder, Size

if TYPE_CHECKING:
    from nestor import ViT


def show(
    model: Folder,
    picture: Annotated[Path, typer.Argument(help="A picture.", show_default=False)],
    budgets: Budgets = None,
    out: Annotated[Path, typer.Option("--out", help="File for the drawing: .png, .svg or .pdf.")] = Path("routing.png"),
    size: Size = None,
    as_json: AsJson = False,
) -> None:
    """Draw over a picture which patch is given which width, for several budgets side by side.

    Example: nestor show elastic/ photo.jpg --budgets .3,.5,1
    """
    wanted = parse.budgets(budgets)
    out = parse.writable_file(out, ".png", ".svg", ".pdf")
    parse.require_matplotlib()

    import nestor
    from nestor.api import prepare

    prepare.pixels(picture, 1)
    with waiting(f"Loading {model}"):
        network = prepare.elastic(nestor.load(str(model)))
    side = prepare.side(network, size)
    chosen = prepare.feasible(network, wanted, side)
    nestor.show(network, picture, budgets=chosen, size=side).savefig(out, bbox_inches="tight", dpi=150)
    rows = _rows(network, picture, chosen, side)
    if as_json:
        give({"drawing": str(out), "budgets": rows})
    else:
        results().print(_table(network, rows))
    say(f"Drawing: {out}")


def _rows(model: ViT, picture: Path, budgets: tuple[float, ...], size: int) -> list[dict[str, Any]]:
    """What each budget comes to: patches at every width, multiply-accumulates, and the class if there is a head."""
    import torch

    from nestor.api import prepare
    from nestor.measure.cost import patches

    settings, count = model.settings, patches(model, size)
    image = prepare.normalised(model, prepare.pixels(picture, size))
    rows = []
    for budget in budgets:
        plan = model.plan(count, budget)
        row: dict[str, Any] = {"budget": budget, "macs": model.macs(plan), "patches": plan}
        if settings.classes:
            with torch.inference_mode():
                logits = model(image, budget=budget).logits
            best = int(logits.argmax())
            row["class"] = settings.labels[best] if settings.labels else str(best)
            row["probability"] = float(logits.softmax(-1)[0, best])
        rows.append(row)
    return rows


def _table(model: ViT, rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = ["budget", "G MACs", *(f"width {width}" for width in model.settings.nest.widths)]
    for name in [*names, "class"] if model.settings.classes else names:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [f"{row['budget']:g}", f"{row['macs'] / 1e9:.3g}", *map(str, row["patches"])]
        table.add_row(*cells, *([f"{row['class']} ({row['probability']:.2f})"] if "class" in row else []))
    return table
