"""Ordinary vision transformers with random weights, to be trained from nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nestor.layers.nested import Nest
from nestor.models.vit import ViT, ViTSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def scratch(
    labels: Sequence[str],
    *,
    side: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    prefix: int = 0,
    head: str = "mean",
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    seed: int = 0,
) -> ViT:
    """An ordinary network for square pictures; `nestor.surgery.nest` makes it elastic.

    Args:
        labels: names of the classes.
        side: of the pictures, in pixels.
        patch: side of a patch; it divides that of the pictures.
        width, depth, heads: of the network, whose hidden layers are four times as wide.
        prefix: class and register tokens.
        head: what the head reads, as in ViTSettings.
        mean, std: of the pictures' channels.
        seed: of the weights; torch's own generator stays as it is.

    Raises:
        ValueError: when the patch does not divide the side, or the heads do not divide the width.
    """
    if side % patch or width % heads:
        raise ValueError(
            f"the patch must divide the side and the heads the width; got {patch} and {side}, {heads} and {width}. "
            "Take 4 and 28, 4 and 64, for instance."
        )
    settings = ViTSettings(
        nest=Nest(widths=(width,), hidden=(4 * width,), heads=(heads,)),
        depth=depth,
        patch=patch,
        grid=(side // patch, side // patch),
        nominal=side,
        prefix=prefix,
        classes=len(labels),
        labels=tuple(labels),
        head=head,
        scores=(),
        mean=mean,
        std=std,
    )
    return _random(settings, seed)


def cheaper(model: ViT, budget: float, *, seed: int = 0) -> ViT:
    """An ordinary network of the same depth with random weights: the `widest` that costs no more than this share.

    Args:
        model: with one expert.
        budget: share of its multiply-accumulates.
        seed: of the weights; torch's own generator stays as it is.

    Raises:
        ValueError: when the model has more than one expert, or no width is so cheap.
    """
    s, patches = model.settings, model.settings.grid[0] * model.settings.grid[1]

    def cost(form: Nest) -> int:
        with torch.device("meta"):
            return ViT(replace(s, nest=form)).full_macs(patches)

    return _random(replace(s, nest=widest(s.nest, budget, cost)), seed)


def widest(full: Nest, budget: float, cost: Callable[[Nest], int]) -> Nest:
    """Sizes of the widest ordinary network that costs no more than this share of another, with as many heads.

    Its hidden layers are four times as wide, and a little more where the channels leave some of the cost over.

    Args:
        full: sizes of the other, which has one expert and is no narrower.
        budget: the share.
        cost: of a network of these sizes.

    Raises:
        ValueError: when there is more than one expert, or no width is so cheap.
    """
    if full.experts != 1:
        raise ValueError(f"a cheaper ordinary network follows from one with 1 expert; got {full.experts}.")
    heads, most = full.heads[0], budget * cost(full)

    def form(width: int, more: int = 0) -> Nest:
        return Nest(widths=(width,), hidden=(4 * width + more,), heads=(heads,))

    widths = [d for d in range(heads, full.widths[0] + 1, heads) if cost(form(d)) <= most]
    if not widths:
        raise ValueError(f"the narrowest network, of width {heads}, costs more than {budget:.3g}. Raise the budget.")
    least = cost(form(widths[-1]))
    return form(widths[-1], int((most - least) // (cost(form(widths[-1], 1)) - least)))


def _random(settings: ViTSettings, seed: int) -> ViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViT(settings)
        place(model.embed.position)
        return model


def place(position: Tensor) -> None:
    """Start positions half as large as what they are added to.

    Tensors learn in proportion to their size (nestor.training.run): positions that start near nothing would leave a
    network without places for its first thousand steps.
    """
    nn.init.normal_(position, std=0.5)
