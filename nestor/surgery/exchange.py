"""Attention or feed-forward parts of a composed network exchanged for others, in a copy."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from nestor.layers.block import Block
from nestor.layers.heads import ChosenHeads, SeparateHeads
from nestor.layers.routed import RoutedBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.models.composed import Composed


def with_attention(model: Composed, build: Callable[[Any], nn.Module]) -> Composed:
    """A copy of a network in which every attention is what `build` makes of it; all else keeps its weights.

    Args:
        model: whose attention decides nothing; it stays as it is.
        build: gets a copy, which it may use, and returns attention that takes and gives tokens, or whose heads are
            experts (`nestor.layers.heads`).

    Raises:
        ValueError: when some attention takes decisions already.
    """
    new = copy.deepcopy(model)
    made = []
    for block in new.chain:
        if isinstance(block, RoutedBlock):
            raise ValueError(
                f"only attention that decides nothing can be exchanged; got {type(block.attention).__name__}. "
                "Start from the network before it was routed."
            )
        attention: Any = build(block.attention)
        kind: Any = RoutedBlock if isinstance(attention, ChosenHeads | SeparateHeads) else Block
        each = kind(model.settings.width, attention, block.layer)
        each.norm1, each.norm2 = block.norm1, block.norm2
        made.append(each)
    new.blocks = nn.ModuleList(made)
    return new


def with_layers(model: Composed, build: Callable[[Any], Any]) -> Composed:
    """A copy of a network in which every feed-forward part is what `build` makes of it; all else keeps its weights.

    Args:
        model: stays as it is.
        build: gets a copy of the part, which it may use, and returns what stands in its place.
    """
    new = copy.deepcopy(model)
    for block in new.chain:
        block.layer = build(block.layer)
    return new
