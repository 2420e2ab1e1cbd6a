"""What the public functions check and choose before any long work begins."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nestor import data as sets
from nestor.data import Pictures
from nestor.layers.nested import Nest
from nestor.measure.cost import patches
from nestor.models.pretrained.files import CONFIG, read_json
from nestor.models.pretrained.read import download, is_hub_name, read
from nestor.models.saved import load_model
from nestor.models.vit import ViT
from nestor.surgery.fold import fold
from nestor.surgery.nest import published
from nestor.surgery.nest import shape as proportional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.data.load import Source

SIZE = 224
BUDGETS = (0.3, 0.5, 0.7, 1.0)


def network(name: ViT | str | Path) -> ViT:
    """The network that a name stands for; see `nestor.load`."""
    if isinstance(name, ViT):
        return name
    path = Path(name).expanduser()
    if is_hub_name(str(name)):
        path = download(str(name))
    if is_saved(path):
        return load_model(path)
    model = fold(read(path if path.exists() else name))
    # Some weights were made for larger pictures than they are used with: DINOv2 for 518 pixels.
    patch = model.settings.patch
    return told(model, size=min(model.settings.nominal, max(patch, SIZE // patch * patch)))


def is_saved(folder: Path) -> bool:
    """Whether a folder holds what Nestor saved."""
    config = folder / CONFIG
    return config.is_file() and read_json(config).get("format") == "nestor"


def told(model: ViT, *, size: int | None = None, labels: tuple[str, ...] | None = None) -> ViT:
    """The network over the same weights, told what size its pictures have or what its classes are called."""
    # A shallow copy shares the weights but not the settings, so that the caller's network stays as it is.
    new, old = copy.copy(model), model.settings
    new.settings = replace(
        old, nominal=old.nominal if size is None else size, labels=old.labels if labels is None else labels
    )
    return new


def side(model: ViT, size: int | None, data: Source | Pictures | None = None) -> int:
    """The side of the pictures in pixels, by default that of the pictures given or else the network's nominal one.

    Raises:
        ValueError: when the patches do not divide it.
    """
    if size is None:
        size = data.size if isinstance(data, Pictures) else model.settings.nominal
    patches(model, size)
    return size


def experts(model: ViT, shape: str | Sequence[float] | Nest) -> Nest:
    """The shape of the experts for a network.

    Args:
        model: the ordinary network.
        shape: `default`: that of `nestor.surgery.nest.shape`; `published`: channels that halve from
            expert to expert, all hidden units and heads; numbers: the channels of each expert, or if the last is 1
            their fractions, hidden units in proportion; or a `Nest`.

    Raises:
        ValueError: when this is no shape, or none for this network.
    """
    if isinstance(shape, Nest):
        return shape
    own = model.settings.nest
    sizes = (own.widths[-1], own.hidden[-1], own.heads[-1])
    if shape == "default":
        return proportional(*sizes)
    if shape == "published":
        return published(*sizes)
    if isinstance(shape, str):
        raise ValueError(f"shape must be default, published or numbers; got {shape!r}. Try 96,192,288,384.")
    fractions = tuple(shape) if shape and shape[-1] == 1 else tuple(width / sizes[0] for width in shape)
    if not fractions or fractions[-1] != 1:
        raise ValueError(
            f"the last width must be the whole network's, {sizes[0]} (or 1, if these are fractions); got "
            f"{shape[-1] if shape else 'none'}. Add it."
        )
    return proportional(*sizes, fractions)


def check_nesting(model: ViT, nest: Nest, size: int, budget: float | None = None) -> None:
    """Check that a network can be made elastic with these experts, and calibrated at a budget.

    Raises:
        ValueError: when it is elastic already, or the experts cannot keep the budget.
    """
    settings = model.settings
    if settings.nest.experts != 1:
        raise ValueError(
            f"nesting takes an ordinary network, with one expert; this one has {settings.nest.experts}. "
            "Start from the dense network that it was made of."
        )
    if budget is None:
        return
    # Shapes are all that counts here, so that no memory is needed.
    with torch.device("meta"):
        outline = ViT(replace(settings, nest=nest, scores=("trailing",)))
    outline.plan(patches(model, size), budget)


def feasible(model: ViT, budgets: Sequence[float] | None, size: int) -> tuple[float, ...]:
    """Budgets that a network can keep at a size: those given, or by default the usual ones as far as it can.

    Raises:
        ValueError: when one that was given cannot be kept, or none was.
    """
    count = patches(model, size)
    if budgets is None:
        if model.settings.nest.experts == 1:
            return (1.0,)
        return tuple(budget for budget in BUDGETS if budget >= model.least_budget(count))
    if not budgets:
        raise ValueError("budgets must name at least one; got none. Try .3,.5,.7,1.")
    for budget in budgets:
        model.plan(count, budget)
    return tuple(budgets)


def parts(model: ViT, data: Source | Pictures, size: int) -> tuple[Pictures, Pictures]:
    """The training and the held-out part of a source, always the same ones, normalised as the network expects.

    Pictures that the caller has loaded are taken whole for both.
    """
    if isinstance(data, Pictures):
        return data.at(size), data.at(size)
    return sets.load_splits(data, size=size, mean=model.settings.mean, std=model.settings.std)


def stacked(pictures: Pictures, model: ViT) -> Tensor:
    """All pictures of a small set, (N, 3, H, W), where the network is."""
    return pictures.stacked().to(model.embed.weight.device)


def elastic(model: ViT) -> ViT:
    """The network, if it has several experts.

    Raises:
        ValueError: when it has one only.
    """
    if model.settings.nest.experts == 1:
        raise ValueError("routing needs an elastic network; this one has one expert. Make it elastic: nestor nest.")
    return model


def pixels(picture: object, size: int) -> Tensor:
    """One picture as it is shown, uint8 (3, size, size)."""
    from nestor.data.decode import square

    return square(sets.open_picture(picture, at_least=size), size)  # pyright: ignore[reportArgumentType]


def normalised(model: ViT, shown: Tensor) -> Tensor:
    """A picture (3, H, W) as a network wants it, (1, 3, H, W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.settings.mean, model.settings.std))
    return ((shown.float() / 255 - mean) / std).unsqueeze(0).to(model.embed.weight)
