"""The few functions that most users need: load, nest, fit, save, profile, clock, show, export."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nestor.api import heads, prepare
from nestor.api.timed import clock
from nestor.layers.nested import Nest
from nestor.models.saved import save_model
from nestor.models.vit import ViT
from nestor.programs.fixed import Interface
from nestor.programs.write import write
from nestor.surgery.nest import nest as widen
from nestor.surgery.quantize import portable
from nestor.training.checks import check
from nestor.training.fit import fit as train
from nestor.training.settings import Fit
from nestor.types import Latency, Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure
    from PIL import Image

    from nestor.data import Pictures
    from nestor.data.load import Source
    from nestor.measure.cost import Elastic
    from nestor.measure.profile import Profile
    from nestor.surgery.quantize import Readings

__all__ = [
    "Fit",
    "Latency",
    "Nest",
    "Output",
    "ViT",
    "clock",
    "export",
    "fit",
    "load",
    "nest",
    "profile",
    "save",
    "show",
]


def load(name: str | Path) -> ViT:
    """Load a network: one that Nestor saved, or a pretrained one, which becomes an ordinary network (one expert).

    Args:
        name: a folder saved by Nestor; `dinov2-small` (packaged); a folder of transformers or timm, or a
            `.safetensors` file under timm's names; `timm:NAME`; or a name on the hub, `user/name`.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: the source is broken or of a kind that is not supported.
        ImportError: a package that the source needs is missing.
    """
    return prepare.network(name)


def nest(
    model: ViT | str | Path,
    data: Source | Pictures,
    *,
    shape: str | Sequence[float] | Nest = "default",
    size: int | None = None,
    pictures: int = 128,
    budget: float | None = None,
    head: str | None = None,
) -> ViT:
    """Make an ordinary network elastic: exact at full budget, and good below it before any training.

    Args:
        model: a network, or its name as in `load`; it is not changed.
        data: pictures to calibrate on, or a source of them as in `nestor.data.load`, of which the training part is
            taken. Labels are needed for a new head only.
        shape: the experts, from narrow to whole, see `nestor.api.prepare.experts`.
        size: side of the pictures in pixels; by default their own, or the network's nominal one.
        pictures: how many of them to calibrate on.
        budget: at which the narrow experts are calibrated; by default one at which each has tokens.
        head: what a new head reads, `class`, `mean` or `class_mean`, fitted to the labels; None keeps what there is.

    Raises:
        ValueError: the network is elastic already, or shape, size, budget or data do not fit it.
    """
    model = prepare.network(model)
    size = prepare.side(model, size, data)
    chosen = prepare.experts(model, shape)
    prepare.check_nesting(model, chosen, size, budget)
    whole, _ = prepare.parts(model, data, size)
    few = whole.limit(pictures)
    images = prepare.stacked(few, model)
    elastic = prepare.told(widen(model, images, nest=chosen, budget=budget), size=size)
    return elastic if head is None else heads.with_head(elastic, whole, head)


def fit(
    model: ViT | str | Path,
    data: Source | Pictures,
    settings: Fit | None = None,
    *,
    teacher: ViT | str | Path | None = None,
    out: str | Path | None = None,
    size: int | None = None,
    validate: Pictures | None = None,
    tensorboard: str | Path | None = None,
    cpu: bool = False,
) -> ViT:
    """Tune a network's weights and router over sampled budgets, by labels and by what a teacher gives.

    A network without a head, or with one for another number of classes, gets a fresh one.

    Args:
        model: a network, or its name as in `load`; it is not changed.
        data: pictures to train on, or a source of them as in `nestor.data.load`, of which the training part is taken.
        settings: how to train.
        teacher: a network of the same width, usually the dense original, or its name; without one, an elastic network
            at full budget teaches itself at less.
        out: a folder for checkpoints and the result; called again after an interruption, training goes on from there.
        size: side of the pictures in pixels; by default their own, or the network's nominal one.
        validate: labelled pictures whose accuracy is noted after each epoch.
        tensorboard: a folder for curves.
        cpu: stay on the CPU where there is an accelerator.

    Raises:
        ValueError: teacher, size or data do not fit the network, or `out` holds another training's checkpoint.
        FloatingPointError: the loss is no longer a finite number.
    """
    settings = Fit() if settings is None else settings
    model = prepare.network(model)
    teacher = None if teacher is None else prepare.network(teacher)
    out = None if out is None else Path(out).expanduser()
    size = prepare.side(model, size, data)
    heads.check_teacher(model, teacher, settings)
    whole, _ = prepare.parts(model, data, size)
    model = heads.named(prepare.told(model, size=size), whole)
    fresh = heads.needs_head(model, whole)
    check(heads.outlined(model, whole) if fresh else model, whole, settings, teacher, validate)
    if fresh:
        model = heads.started(model, whole, out)
    # Without an accelerator, several processes find each other only if the CPU is asked for.
    cpu = cpu or not torch.accelerator.is_available()
    return train(model, whole, settings, teacher=teacher, out=out, validate=validate, tensorboard=tensorboard, cpu=cpu)


def save(model: ViT, folder: str | Path) -> None:
    """Write a network into a folder, as safetensors and JSON; `load` gives it back bit for bit.

    Raises:
        OSError: the folder cannot be written; what stood there is still whole.
    """
    save_model(model, Path(folder).expanduser())


def profile(
    model: ViT | str | Path,
    data: Source | Pictures,
    *,
    budgets: Sequence[float] | None = None,
    dense: ViT | str | Path | None = None,
    rivals: Mapping[str, Elastic] | None = None,
    batches: Sequence[int] = (1, 16),
    precisions: Sequence[str] = ("float32", "bfloat16"),
    size: int | None = None,
    limit: int | None = None,
) -> Profile:
    """Measure what every budget costs and gives: multiply-accumulates, accuracy, and time against the dense network.

    Accuracy becomes likeness to the dense network where there are no labels, or the head is for other classes.

    Args:
        model: a network, or its name as in `load`.
        data: pictures to measure on, or a source of them as in `nestor.data.load`, of which the held-out part is taken.
        budgets: by default those of 0.3, 0.5, 0.7 and 1 that the network allows.
        dense: the ordinary network to compare with; by default the network itself at full budget.
        rivals: other networks to measure alike, by name.
        batches: sizes of the batches that are timed.
        precisions: number formats that are timed.
        size: side of the pictures in pixels; by default their own, or the network's nominal one.
        limit: at most so many pictures.

    Raises:
        ValueError: a budget, the size or the data do not fit the network.
    """
    from nestor.measure.profile import profile as measure

    model = prepare.network(model)
    dense = None if dense is None else prepare.network(dense)
    size = prepare.side(model, size, data)
    chosen = prepare.feasible(model, budgets, size)
    _, whole = prepare.parts(model, data, size)
    return measure(
        model,
        heads.comparable(model, whole),
        budgets=chosen,
        dense=dense,
        rivals={} if rivals is None else rivals,
        batches=tuple(batches),
        precisions=tuple(precisions),
        limit=limit,
    )


def show(
    model: ViT | str | Path,
    picture: str | Path | Image.Image,
    *,
    budgets: Sequence[float] | None = None,
    size: int | None = None,
) -> Figure:
    """Draw which patch of a picture is given which width, for several budgets side by side.

    Args:
        model: an elastic network, or its name as in `load`.
        picture: a file or a PIL picture.
        budgets: by default those of 0.3, 0.5, 0.7 and 1 that the network allows.
        size: side in pixels that the picture is scaled and cropped to; by default the network's nominal one.

    Raises:
        FileNotFoundError: there is no such picture.
        ValueError: the network has one expert only, the picture cannot be read, or a budget or the size does not fit.
        ImportError: matplotlib is missing.
    """
    from nestor.measure.draw import routings

    model = prepare.network(model)
    size = prepare.side(model, size)
    return routings(prepare.elastic(model), prepare.pixels(picture, size), prepare.feasible(model, budgets, size))


def export(
    model: ViT | str | Path,
    out: str | Path,
    *,
    budgets: Sequence[float] = (1.0,),
    format: str = "onnx",
    size: int | None = None,
    inputs: str = "normalised",
    outputs: Sequence[str] | None = None,
    readings: Readings | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a network as programs that run without Nestor, once each was found to give what the network gives.

    A program has one budget and one size of pictures, computes in single precision and takes any number of pictures
    at once, as the input `images`. It says of itself, under names that begin with `nestor.`, what it is.

    Args:
        model: a network, or its name as in `load`.
        out: the file, `.onnx`, `.xml` or `.pt2`. Of several budgets each has one, with the budget in its name:
            `vit-0.5.onnx` for `vit.onnx`.
        budgets: one or several.
        format: `onnx`, where the programs of several budgets share one file of weights, `vit.onnx.data`; `openvino`,
            each with its weights in a `.bin` beside it; or `torch`, programs of torch.export, with weights inside.
        size: side of the pictures in pixels; by default the network's nominal one.
        inputs: `normalised` as the network itself takes pictures, or `pixels` from 0 to 255 (uint8), which the program
            normalises.
        outputs: any of `logits`, `class_token` and `tokens`; by default the logits, without a head the class token,
            and without one of these the tokens.
        readings: how products are rounded to eight bits, for `openvino`: `nestor.models.readings.load_readings(folder)`
            after `nestor quantize`.
        overwrite: whether files that are there may be replaced.

    Returns:
        The files that were written: programs in the order of the budgets, then the weights where they lie apart.

    Raises:
        ValueError: the format, inputs or outputs are not known, a file is there already, budget, size or readings do
            not fit the network, the format has no eight bits, or a program differs from the network by more than 1e-4,
            or in eight bits by more than twice what rounding costs.
        ImportError: packages are missing.
        OSError: the files cannot be written.
    """
    model = prepare.network(model)
    interface = Interface(
        size=prepare.side(model, size), inputs=inputs, outputs=None if outputs is None else tuple(outputs)
    )
    rounding = None if readings is None else partial(portable, readings=readings)
    return write(
        model, out, interface=interface, budgets=budgets, format=format, rounding=rounding, overwrite=overwrite
    )
