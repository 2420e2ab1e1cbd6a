"""`nestor fit`: tune a network over all budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nestor.cli import job as jobs
from nestor.cli import parse
from nestor.cli.console import give, say, speaks, waiting
from nestor.cli.console import out as results
from nestor.cli.options import AsJson, Size

PRECISIONS = {"float32": "no", "bfloat16": "bf16"}
# Options that are fields of Fit, of its sampled budgets or of Augment, by their names there.
_ALIKE = ("epochs", "batch", "rate", "flip", "jitter", "precision", "seed")
FIELDS = {"lowest": "low", "rotate": "rotate90"} | dict(zip(_ALIKE, _ALIKE, strict=True))


def fit(
    ctx: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(help="A folder saved by Nestor, or any MODEL.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Pictures: a folder (one sub-folder a class), a CSV or Parquet file, a data set of the hub, "
            "'elpv' or 'fashion-mnist'.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="TOML, YAML or JSON with model, data, teacher, out, size, validate and a table fit of training "
            "settings; a result's run.toml is one. What stands on the command line goes before it.",
            show_default=False,
        ),
    ] = None,
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
        typer.Option(
            "--out",
            help="Folder for the result; by default the network's own, whose untuned network is replaced.",
            show_default=False,
        ),
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
    as_json: AsJson = False,
) -> None:
    """Tune a network's weights and router over sampled budgets; after an interruption the same command goes on.

    Example: nestor fit elastic/ --data photos/ --epochs 5

    The same again: nestor fit --config elastic/run.toml --out again/
    """
    parse.precision(precision)
    given = {name: value for name, value in ctx.params.items() if _was_given(ctx, name)}
    fields = {field: given[name] for name, field in FIELDS.items() if name in given}
    if "precision" in fields:
        fields["precision"] = PRECISIONS[precision]
    asked = jobs.read(config)
    model = Path(asked.model) if model is None and asked.model is not None else model
    data, teacher = data or asked.data, teacher or asked.teacher
    out = Path(asked.out) if out is None and asked.out is not None else out
    if model is None or data is None:
        raise ValueError("fit needs a MODEL and --data, on the command line or in --config. Name them.")
    if out is None and (config is not None or not model.expanduser().is_dir()):
        why = f"{model} is no folder" if config is None else f"{config} names no folder for its result"
        raise ValueError(f"{why}, so that fit needs another one. Give --out.")
    folder = parse.writable_folder(model if out is None else out)
    settings = jobs.settings(asked, config, fields)
    if out is None:
        say(f"{folder} is tuned in place. To keep the untuned network too, give --out.")

    import nestor
    from nestor.api import heads, prepare
    from nestor.training.checkpoint import fingerprint, fingerprint_pictures

    with waiting(f"Loading {model}"):
        network = nestor.load(str(model))
        taught_by = None if teacher is None else nestor.load(teacher)
    heads.check_teacher(network, taught_by, settings)
    side = prepare.side(network, size or asked.size)
    train, held_out = prepare.parts(network, data, side)
    if train.skipped:
        say(f"{len(train.skipped)} pictures cannot be read and are left out, first {train.skipped[0]}")
    checks = validate if "validate" in given else asked.validate
    made = jobs.Job(
        model=str(model),
        data=data,
        teacher=teacher,
        size=side,
        validate=checks,
        weights=fingerprint(network.state_dict()),
        pictures=fingerprint_pictures(train),
        teacher_weights=None if taught_by is None else fingerprint(taught_by.state_dict()),
    )
    jobs.require_same(asked, made, config)
    if heads.needs_head(network, train):
        had = f"a head for {network.settings.classes} classes" if network.settings.classes else "no head"
        say(f"The network has {had}; it gets a fresh one for {len(train.classes)}: {', '.join(train.classes[:10])}.")
    nestor.fit(
        network,
        train,
        settings,
        teacher=taught_by,
        out=folder,
        validate=held_out if checks and held_out.classes else None,
        tensorboard=tensorboard,
        cpu=cpu,
    )
    if not speaks():
        return
    jobs.write(made, settings, folder)
    if as_json:
        give({"folder": str(folder), **json.loads((folder / "fit.json").read_text(encoding="utf-8"))})
        return
    results().print(f"{folder} is fitted. Next: nestor profile {folder} --data {data}", markup=False, soft_wrap=True)


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
