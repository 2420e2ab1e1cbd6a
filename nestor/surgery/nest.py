"""Dense to elastic: one network in, one network out that runs at any budget."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestor.layers.nested import Nest
from nestor.models.vit import ViT
from nestor.routing.score import TrailingEnergy
from nestor.surgery.basis import by_importance, components, rotate
from nestor.surgery.calibrate import compensate

if TYPE_CHECKING:
    from collections.abc import Sequence


def shape(width: int, hidden: int, heads: int, fractions: Sequence[float] = (0.25, 0.5, 0.75, 1.0)) -> Nest:
    """The default shape: hidden units in proportion to the channels, all heads.

    Args:
        width, hidden, heads: of the dense network.
        fractions: of the channels, increasing, the last 1; 0 is a skip.

    Raises:
        ValueError: when the fractions do not increase to 1.
    """
    if not fractions or fractions[-1] != 1:
        raise ValueError(f"fractions must end with 1, the whole network; got {tuple(fractions)}.")
    return Nest(
        widths=tuple(round(f * width) for f in fractions),
        hidden=tuple(round(f * hidden) for f in fractions),
        heads=tuple(heads if f else 0 for f in fractions),
    )


def published(width: int, hidden: int, heads: int, experts: int = 4) -> Nest:
    """The published shape (MoNE, section 3.1): channels halve from expert to expert, hidden units and heads are all used."""
    widths = tuple(width >> j for j in reversed(range(experts)))
    return Nest(widths=widths, hidden=(hidden,) * experts, heads=(heads,) * experts)


@torch.no_grad()
def nest(
    model: ViT, images: Tensor, *, nest: Nest | None = None, budget: float = 0.5, compensated: bool = True
) -> ViT:
    """An elastic copy of a dense network, exact at full budget and good below it before any training.

    The stream is rotated into the principal components of what the sublayers read, hidden units and heads are ordered
    by what they write, tokens are routed by their trailing energy, and each narrow expert's biases and readout are
    fitted to the full network in closed form.

    Args:
        model: a network with one expert; it is not changed.
        images: (n, 3, H, W) calibration pictures, normalised; 32 to 128 are enough.
        nest: the shape of the experts; by default `shape` of the model's sizes.
        budget: at which the narrow experts are calibrated.
        compensated: False leaves biases and readout as slices of the full network's, as published.

    Raises:
        ValueError: when the model is nested already, or the shape does not end with the model's own sizes.
    """
    s = model.settings
    if s.nest.experts != 1:
        raise ValueError(f"nest takes a network with one expert; got one with {s.nest.experts}. Start from the dense one.")
    own = (s.nest.widths[-1], s.nest.hidden[-1], s.nest.heads[-1])
    nest = shape(*own) if nest is None else nest
    if (nest.widths[-1], nest.hidden[-1], nest.heads[-1]) != own:
        raise ValueError(
            f"the last expert must be the whole network, {own[0]} channels, {own[1]} hidden units and {own[2]} heads; "
            f"got {nest.widths[-1]}, {nest.hidden[-1]} and {nest.heads[-1]}."
        )
    full = rotate(model, components(model, images))
    full = by_importance(full, images)
    new = _widen(full, nest)
    _calibrate_router(new, images)
    return compensate(new, full, images, budget) if compensated and nest.experts > 1 else new


def with_head(model: ViT, labels: Sequence[str], kind: str = "class_mean") -> ViT:
    """A copy with a fresh head of zeros for these classes.

    Args:
        model: any ViT.
        labels: names of the classes.
        kind: what the head reads: `class`, `mean` or `class_mean`.
    """
    if kind not in ("class", "mean", "class_mean"):
        raise ValueError(f"a fresh head reads class, mean or class_mean; got {kind!r}.")
    if kind != "mean" and model.settings.prefix == 0:
        raise ValueError(f"the head {kind!r} reads a class token and this network has none. Use 'mean'.")
    settings = replace(model.settings, classes=len(labels), labels=tuple(labels), head=kind)
    new = ViT(settings)
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    new.load_state_dict(own, strict=False)
    assert new.head is not None
    torch.nn.init.zeros_(new.head.linear.weight)
    torch.nn.init.zeros_(new.head.linear.bias)
    return new.train(model.training)


def _widen(full: ViT, nest: Nest) -> ViT:
    """A nested network whose experts are all slices of the full one."""
    E = nest.experts
    new = ViT(replace(full.settings, nest=nest, scores=("trailing", "linear") if E > 1 else ()))
    state = copy.deepcopy(full.state_dict())
    for name in [name for name in state if name.endswith("ward_bias") or name == "readout.bias"]:
        state[name] = state[name].expand(E, -1).clone()
    basis = state.pop("readout.weight.0")
    state |= {f"readout.weight.{j}": basis[:, :d].clone() for j, d in enumerate(nest.widths)}
    missing, extra = new.load_state_dict(state, strict=False)
    assert not extra
    assert all(name.startswith("router.") or name.endswith("alpha") for name in missing)
    return new.train(full.training)


def _calibrate_router(model: ViT, images: Tensor) -> None:
    if model.router is None:
        return
    patches = model.embed(images)[:, model.settings.prefix :]
    for part in model.router.modules():
        if isinstance(part, TrailingEnergy):
            part.calibrate(patches)
