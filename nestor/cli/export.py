"""`nestor export`: a network for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nestor.cli import parse
from nestor.cli.console import give, waiting
from nestor.cli.console import out as results
from nestor.cli.options import AsJson, Folder, Size


def export(
    model: Folder,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="File for the program; of several budgets each has its own, with the budget in its name.",
            show_default=False,
        ),
    ],
    budget: Annotated[
        list[float] | None,
        typer.Option(
            "--budget",
            help="Fraction of the full network's multiply-accumulates, 1 by default; may be given several times.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx: .onnx files that share their weights; openvino: .xml, the quickest on CPUs; torch: .pt2.",
        ),
    ] = "onnx",
    size: Size = None,
    inputs: Annotated[
        str,
        typer.Option("--inputs", help="normalised pictures, or pixels from 0 to 255 that the program normalises."),
    ] = "normalised",
    outputs: Annotated[
        str | None,
        typer.Option(
            "--outputs",
            help="Any of logits, class_token, tokens and experts, with commas between; by default the first there is.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="float32, or int8 for openvino after nestor quantize.")
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a program for one budget that runs without Nestor, once it was found to give what the network gives.

    Example: nestor export elastic/ --budget 0.5 --out elastic.onnx
    """
    out = parse.writable_file(out)
    parse.precision(precision, ("float32", "int8"))
    wanted = (1.0,) if budget is None else tuple(budget)

    import nestor
    from nestor.models.readings import load_readings
    from nestor.programs.write import files, require

    files(out, wanted, format)
    require(format)
    with waiting(f"Loading {model}"):
        network = nestor.load(str(model))
        readings = load_readings(str(model)) if precision == "int8" else None
    with waiting(f"Writing and checking {out}"):
        written = nestor.export(
            network,
            out,
            budgets=wanted,
            format=format,
            size=size,
            inputs=inputs,
            outputs=None if outputs is None else tuple(outputs.split(",")),
            readings=readings,
            overwrite=overwrite,
        )
    if as_json:
        give([{"file": str(file), "bytes": file.stat().st_size} for file in written])
        return
    for file in written:
        results().print(f"{file}: {file.stat().st_size / 1e6:.3g} MB", markup=False, soft_wrap=True)
