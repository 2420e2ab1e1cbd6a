"""`nestor quantize`: make a network ready to run in eight bits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nestor.cli import parse
from nestor.cli.console import give, say, waiting
from nestor.cli.console import out as results
from nestor.cli.options import AsJson, Budgets, Data, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor import ViT


def quantize(
    folder: Annotated[Path, typer.Argument(metavar="model", help="A folder saved by Nestor.", show_default=False)],
    data: Data,
    size: Size = None,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="How many to calibrate on.")] = 32,
    budgets: Budgets = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures of a call that is timed.")] = 16,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each budget is timed.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Make a network ready to run in eight bits on a CPU: nestor serve --precision int8.

    What is needed beside the weights is kept beside them; they stay as they are. On held-out pictures it shows how like
    the full network's tokens those of each budget are, in single precision and in eight bits.

    Example: nestor quantize elastic/ --data photos/
    """
    wanted = parse.budgets(budgets)

    import nestor
    from nestor.api import prepare
    from nestor.measure.likeness import likeness
    from nestor.models.readings import READINGS, save_readings
    from nestor.surgery.quantize import measured, quantized

    folder = folder.expanduser()
    if not prepare.is_saved(folder):
        raise ValueError(f"{folder} holds no network that Nestor saved. Make one: nestor nest.")
    parse.writable_file(folder / READINGS)
    with waiting(f"Loading {folder}"):
        model = nestor.load(folder).eval()
    side = prepare.side(model, size)
    chosen = sorted(prepare.feasible(model, wanted, side), reverse=True)
    train, held_out = prepare.parts(model, data, side)
    with waiting(f"Calibrating on {min(pictures, len(train))} pictures"):
        readings = measured(model, prepare.stacked(train.limit(pictures), model))
    small = quantized(model, readings)
    few = held_out.limit(min(len(held_out), 4 * pictures))
    like = [likeness(network, model, few, chosen) for network in (model, small)]
    times = _times([model, small], side, batch, chosen, rounds)
    save_readings(readings, folder)
    rows = [
        {"budget": budget, "likeness": like[0][budget].token, "likeness_int8": like[1][budget].token}
        | {"ms": single, "ms_int8": eight}
        for budget, (single, eight) in zip(chosen, times, strict=True)
    ]
    if as_json:
        give({"file": str(folder / READINGS), "batch": batch, "pictures": len(few), "budgets": rows})
    else:
        results().print(_table(rows, batch, len(few)))
    say(f"Readings: {folder / READINGS}. Use them: nestor serve {folder} --precision int8")


def _times(
    models: Sequence[ViT], side: int, batch: int, budgets: Sequence[float], rounds: int
) -> list[tuple[float, float]]:
    """Milliseconds of both networks at each budget, all in turns."""
    import torch

    from nestor.measure.clock import race
    from nestor.measure.cost import patches

    count = patches(models[0], side)
    images = torch.zeros(batch, models[0].settings.channels, side, side)
    calls = {
        f"{number} {budget}": partial(model.run, images, model.plan(count, budget))
        for budget in budgets
        for number, model in enumerate(models)
    }
    with torch.inference_mode():
        taken = race(calls, rounds=rounds, what="Timing")
    return [(taken[f"0 {budget}"].median_ms, taken[f"1 {budget}"].median_ms) for budget in budgets]


def _table(rows: Sequence[dict[str, float]], batch: int, pictures: int) -> Table:
    shown = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption=f"Cosine of the first token with the full network's, {pictures} pictures held out; "
        f"milliseconds of a batch of {batch}",
    )
    for name in ("budget", "float32, cosine", "int8, cosine", "float32, ms", "int8, ms"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            f"{row['budget']:.2f}",
            f"{row['likeness']:.4f}",
            f"{row['likeness_int8']:.4f}",
            f"{row['ms']:.3g}",
            f"{row['ms_int8']:.3g}",
        )
    return shown
