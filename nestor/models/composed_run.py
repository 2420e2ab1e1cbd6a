"""A composed network told something from outside, and what any of its passes came to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nestor.layers.routed import RoutedBlock
from nestor.layers.together import spent
from nestor.types import Output, Signal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from torch import Tensor

    from nestor.models.composed import Composed


def told(model: Composed, images: Tensor, signal: Signal) -> Output:
    """(B, 3, H, W) -> what the network answers when its routers are told this from the start, beside the grid.

    With `Signal(counts=(T, 0))` a network that may skip tokens skips none.
    """
    tokens, routings = model.embed(images), ()
    signal = replace(signal, grid=model.cells(images.shape))
    for block in model.chain:
        tokens, found = block(tokens, signal)
        routings += found
        signal = replace(signal, routing=found[-1]) if found else signal
    tokens = model.norm(tokens)
    read = tokens[:, model.settings.prefix :].mean(1)
    if model.settings.head == "class_mean":
        read = torch.cat([tokens[:, 0], read], -1)
    return Output(model.head(read), routings, lambda: tokens)


def macs(model: Composed, output: Output, items: int, patches: int) -> float:
    """Multiply-accumulates of one item, the mean of those that gave this output; for layers and blocks of any kind.

    Args:
        model: whose blocks may route in their attention too, or hold several layers side by side.
        output: of this network.
        items: B.
        patches: of each item.
    """
    T = patches + model.settings.prefix
    shape = (items, T, model.settings.width)
    frame = model.embed.macs(patches) + model.head.weight.numel()
    total, left = 0, iter(output.routings)
    parts: Sequence[Any] = model.chain
    for block in parts:
        if isinstance(block, RoutedBlock):
            total += block.attention.macs(next(left), shape)
        else:
            total += items * block.attention.macs(T)
        total += spent(block.layer, left, shape)
    return frame + total / items
