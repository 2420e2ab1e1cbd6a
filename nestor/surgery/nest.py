"""Dense to elastic: one network in, one network out that runs at any budget."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestor.layers.nested import Nest
from nestor.models.vit import ViT
from nestor.surgery.basis import by_importance, components, rotate
from nestor.surgery.calibrate import compensate
from nestor.surgery.losses import calibrate_router

if TYPE_CHECKING:
    from collections.abc import Sequence


# Gains at every budget at 224 px and loses at none at 112 px; 0.7 gains more at 224 and loses at 112.
_MERGE = 0.5


def shape(
    width: int,
    hidden: int,
    heads: int,
    fractions: Sequence[float] = (0.25, 1.0),
    *,
    own: bool = True,
    merge: float | None = None,
) -> Nest:
    """The default shape: hidden units in proportion to the channels, all heads, own matrices where slices lose most.

    Args:
        width, hidden, heads: of the dense network.
        fractions: of the channels, increasing, the last 1; 0 is a skip.
        own: whether narrow experts have matrices of their own, see Nest; a quarter width costs 8% more weights.
        merge: how many tokens merge on the way, see Nest; 0.5 unless given, none where an expert is a skip.

    Raises:
        ValueError: when the fractions do not increase to 1.
    """
    if not fractions or fractions[-1] != 1:
        raise ValueError(f"fractions must end with 1, the whole network; got {tuple(fractions)}.")
    return Nest(
        widths=tuple(round(f * width) for f in fractions),
        hidden=tuple(round(f * hidden) for f in fractions),
        heads=tuple(heads if f else 0 for f in fractions),
        own=own,
        merge=_MERGE * (0 < fractions[0] < 1) if merge is None else merge,
    )


def published(width: int, hidden: int, heads: int, experts: int = 4) -> Nest:
    """The published shape (MoNE, section 3.1): channels halve from expert to expert, all hidden units, all heads."""
    widths = tuple(width >> j for j in reversed(range(experts)))
    return Nest(widths=widths, hidden=(hidden,) * experts, heads=(heads,) * experts)


@torch.no_grad()
def nest(
    model: ViT,
    images: Tensor,
    *,
    nest: Nest | None = None,
    budget: float | None = None,
    compensated: bool = True,
    basis: Tensor | None = None,
) -> ViT:
    """An elastic copy of a dense network, exact at full budget and good below it before any training.

    The stream is rotated into the principal components of what the sublayers read, hidden units and heads are ordered
    by what they write, tokens are routed by what they are expected to lose, and what a narrow expert has of its own
    (biases, readout and, by its shape, matrices) is fitted to the full network in closed form.

    Args:
        model: a network with one expert; it is not changed.
        images: (n, 3, H, W) calibration pictures, normalised; 32 to 128 are enough.
        nest: the shape of the experts; by default `shape` of the model's sizes.
        budget: at which the narrow experts are calibrated; by default a third of the way from the least to 1, where
            every expert has tokens.
        compensated: False leaves biases and readout as slices of the full network's, as published.
        basis: (D, D), orthogonal, the columns that become the channels; by default the principal components.

    Raises:
        ValueError: when the model is nested already, the shape does not end with the model's own sizes, or the basis
            is not orthogonal.
    """
    s = model.settings
    if s.nest.experts != 1:
        raise ValueError(
            f"nest takes a network with one expert; got one with {s.nest.experts}. Start from the dense one."
        )
    own = (s.nest.widths[-1], s.nest.hidden[-1], s.nest.heads[-1])
    nest = shape(*own) if nest is None else nest
    if (nest.widths[-1], nest.hidden[-1], nest.heads[-1]) != own:
        raise ValueError(
            f"the last expert must be the whole network, {own[0]} channels, {own[1]} hidden units and {own[2]} heads; "
            f"got {nest.widths[-1]}, {nest.hidden[-1]} and {nest.heads[-1]}."
        )
    full = rotate(model, components(model, images) if basis is None else basis)
    full = by_importance(full, images)
    new = _widen(full, nest)
    calibrate_router(new, full, images)
    if not compensated or nest.experts == 1:
        return new
    rows, columns = new.embed.cells(images.shape)
    least = new.least_budget(rows * columns)
    return compensate(new, full, images, least + 0.35 * (1 - least) if budget is None else budget)


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
    new = ViT(replace(full.settings, nest=nest, scores=("loss",) if E > 1 else ()))
    state = copy.deepcopy(full.state_dict())
    for name in [name for name in state if name.endswith("ward_bias") or name == "readout.bias"]:
        state[name] = state[name].expand(E, -1).clone()
    state["readout.weight"] = torch.cat([state["readout.weight"][:, :d] for d in nest.widths], 1)
    missing, extra = new.load_state_dict(state, strict=False)
    assert not extra
    assert all(name.startswith("router.") or name.endswith(("alpha", "_own")) for name in missing)
    for block in new.blocks:
        for j in range(E - 1) if nest.own else ():
            own = block.attention.inward_of(j)
            own.copy_(block.attention.inward[: len(own), : nest.widths[j]])
            block.mlp.outward_of(j).copy_(block.mlp.outward[: nest.widths[j], : nest.hidden[j]])
    return new.train(full.training)
