"""`nestor fit`: tune a network over all budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nestor.cli import parse
from nestor.cli.console import out as results
from nestor.cli.console import say, waiting
from nestor.cli.options import Data, Folder, Size

PRECISIONS = {"float32": "no", "bfloat16": "bf16"}


def fit(
    model: Folder,
    data: Data,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            help="Any MODEL of the same width, usually the dense original. "
            "Without one the full network teaches itself at less.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the result; by default the network's own.", show_default=False),
    ] = None,
    size: Size = None,
    epochs: Annotated[int, typer.Option("--epochs", help="How often all pictures are shown.")] = 10,
    batch: Annotated[int, typer.Option("--batch", help="Pictures of one step, all processes together.")] = 32,
    rate: Annotated[float, typer.Option("--rate", help="Highest rate, relative to each tensor's own size.")] = 3e-4,
    lowest: Annotated[float, typer.Option("--lowest", help="Lowest budget to train.")] = 0.25,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the pictures.")] = False,
    rotate: Annotated[bool, typer.Option("--rotate", help="Turn pictures by quarters.")] = False,
    jitter: Annotated[float, typer.Option("--jitter", help="Change brightness and contrast, up to this share.")] = 0.0,
    precision: Annotated[str, typer.Option("--precision", help="float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option("--seed", help="Of data order, budgets and random changes.")] = 0,
    validate: Annotated[
        bool, typer.Option("--validate/--no-validate", help="Note the accuracy on held-out pictures after each epoch.")
    ] = True,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU where there is an accelerator.")] = False,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Folder for TensorBoard's logs.", show_default=False)
    ] = None,
) -> None:
    """Tune a network's weights and router over sampled budgets; after an interruption the same command goes on."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(PRECISIONS)}; got {precision!r}.")
    if out is None and not model.expanduser().is_dir():
        raise ValueError(f"{model} is no folder, so that fit needs another one for its result. Give --out.")
    folder = parse.writable_folder(model if out is None else out)

    import nestor
    from nestor.api import heads, prepare
    from nestor.data import Augment
    from nestor.training.schedule import Sampled

    changes = Augment(flip=flip, rotate90=rotate, jitter=jitter)
    settings = nestor.Fit(
        epochs=epochs,
        batch=batch,
        rate=rate,
        budgets=Sampled(low=lowest),
        precision=PRECISIONS[precision],
        seed=seed,
        augment=changes if flip or rotate or jitter else None,
    )
    with waiting(f"Loading {model}"):
        network = nestor.load(str(model))
        taught_by = None if teacher is None else nestor.load(teacher)
    heads.check_teacher(network, taught_by, settings)
    side = prepare.side(network, size)
    train, held_out = prepare.parts(network, data, side)
    if train.skipped:
        say(f"{len(train.skipped)} pictures cannot be read and are left out, first {train.skipped[0]}")
    if heads.needs_head(network, train):
        had = f"a head for {network.settings.classes} classes" if network.settings.classes else "no head"
        say(f"The network has {had}; it gets a fresh one for {len(train.classes)}: {', '.join(train.classes[:10])}.")
    checks = held_out if validate and held_out.classes else None
    nestor.fit(
        network, train, settings, teacher=taught_by, out=folder, validate=checks, tensorboard=tensorboard, cpu=cpu
    )
    results().print(f"{folder} is fitted. Next: nestor profile {folder} --data {data}", markup=False, soft_wrap=True)
