"""`nestor nest`: dense to elastic."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestor.cli import parse
from nestor.cli.console import give, say, waiting
from nestor.cli.console import out as results
from nestor.cli.options import AsJson, Data, Size

if TYPE_CHECKING:
    from nestor import ViT


def nest(
    model: Annotated[
        str,
        typer.Argument(
            help="dinov2-small, a folder of transformers, timm or Nestor, a .safetensors file, timm:NAME, "
            "or a name of the hub.",
            show_default=False,
        ),
    ],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder for the elastic network.", show_default=False)],
    size: Size = None,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="How many to calibrate on.")] = 128,
    shape: Annotated[
        str,
        typer.Option(
            "--shape", help="default, published, or the widths of the experts: channels, or fractions up to 1."
        ),
    ] = "default",
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            help="Fit a new head to the labels, which reads class, mean or class_mean; "
            "by default the network keeps its own.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a network that Nestor saved there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make an ordinary network elastic: exact at full budget, and good below it before any training.

    Example: nestor nest dinov2-small --data photos/ --out elastic/
    """
    widths = parse.shape(shape)
    out = parse.writable_folder(out)
    if not overwrite and (out / "config.json").exists():
        raise ValueError(f"{out} holds a network already. Name another folder, or say --overwrite.")

    import nestor
    from nestor.api import heads, prepare
    from nestor.data import require_classes

    with waiting(f"Loading {model}"):
        dense = nestor.load(model)
    side = prepare.side(dense, size)
    prepare.check_nesting(dense, prepare.experts(dense, widths), side)
    made_for = dense.settings.grid[0] * dense.settings.patch
    if size is None and side != made_for:
        say(f"Pictures at {side} px, although the weights were made for {made_for}; --size changes this.")
    train, _ = prepare.parts(dense, data, side)
    if train.skipped:
        say(f"{len(train.skipped)} pictures cannot be read and are left out, first {train.skipped[0]}")
    if head is not None:
        heads.check_head(dense, head)
        require_classes(train)
    with waiting(f"Nesting on {min(pictures, len(train))} pictures"):
        elastic = nestor.nest(dense, train, shape=widths, pictures=pictures, head=head)
    # A checkpoint or record of another network's training would be taken for this one's.
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    for record in ("fit.json", "run.toml"):
        (out / record).unlink(missing_ok=True)
    nestor.save(elastic, out)
    _tell(elastic, side, out, as_json)


def _tell(model: ViT, size: int, out: Path, as_json: bool) -> None:
    from nestor.measure.cost import patches

    count, nest = patches(model, size), model.settings.nest
    macs, least = model.full_macs(count), model.least_budget(count)
    if as_json:
        shape = {"widths": nest.widths, "hidden": nest.hidden, "heads": nest.heads}
        give({"folder": str(out), **shape, "size": size, "macs": macs, "least_budget": least})
        return
    console = results()
    console.print(f"{out}: widths {', '.join(map(str, nest.widths))}; {macs / 1e9:.3g} G MACs at {size} px")
    if nest.experts > 1:
        console.print(f"budgets from {least:.2f} to 1. Next: nestor fit {out} --data ...")
