"""A network as an accelerator with fixed-point numbers runs it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nestor.experts.feedforward import Activation, FeedForward
from nestor.layers.block import Block
from nestor.layers.fixed_point import FixedPointBlock
from nestor.ops.rounded import FixedPoint, gelu_by_table

if TYPE_CHECKING:
    from nestor.models.tasked import Tasked

WEIGHTS, TOKENS = FixedPoint(bits=16, whole=2), FixedPoint(bits=32, whole=10)


@torch.no_grad()
def fixed_point(model: Tasked, *, weights: FixedPoint = WEIGHTS, tokens: FixedPoint = TOKENS) -> Tasked:
    """A copy with rounded weights, rounded numbers between all parts, attention in one pass and GELU from a table.

    Args:
        model: of blocks with attention, and feed-forward networks of GELU.
        weights: how each parameter is rounded.
        tokens: how what flows between the parts is rounded.

    Raises:
        ValueError: when a block is of another kind.
    """
    new = copy.deepcopy(model)
    for parameter in new.parameters():
        parameter.copy_(weights(parameter))
    table = Activation(fan=1, apply=lambda x: _through(x, tokens))
    for part in new.modules():
        if isinstance(part, FeedForward) and part.activation.fan == 1:
            part.activation = table
    blocks = [block for block in new.chain if isinstance(block, Block)]
    if len(blocks) != len(new.blocks):
        raise ValueError("only blocks whose attention is not a mixture run in fixed point; got another kind.")
    new.blocks = nn.ModuleList(FixedPointBlock(block, tokens) for block in blocks)
    return new


def _through(values: Tensor, numbers: FixedPoint) -> Tensor:
    return numbers(gelu_by_table(numbers(values)))
