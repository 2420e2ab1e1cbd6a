"""A small language model composed of given blocks: what comes next, at every place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor, nn

from nestor.layers.together import spent
from nestor.types import Output, Signal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.layers.routed import RoutedBlock


@final
class CausalModel(nn.Module):
    """Words and places become tokens, then come the given blocks, a norm and a linear head.

    Args:
        words: how many there are.
        width: D.
        length: how many places there are at most.
        blocks: in their order, none of which may hear what comes later.
    """

    def __init__(self, words: int, width: int, length: int, blocks: Sequence[RoutedBlock]):
        super().__init__()
        self.words = nn.Parameter(torch.randn(words, width) * 0.1)
        self.position = nn.Parameter(torch.randn(length, width) * 0.1)
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, words)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, task: int = 0) -> Output:
        """(B, T) -> logits (B, T, words) of what comes next, tokens, and the decisions of all layers; one task only.

        Raises:
            ValueError: when there are more words than places.
        """
        if ids.shape[1] > len(self.position):
            raise ValueError(f"at most {len(self.position)} words have a place; got {ids.shape[1]}. Cut the text.")
        tokens, routings, signal = self.words[ids] + self.position[: ids.shape[1]], (), Signal(ids=ids)
        for block in self.chain:
            tokens, found = block(tokens, signal)
            routings += found
        tokens = self.norm(tokens)
        return Output(self.head(tokens), routings, lambda: tokens)

    @property
    def chain(self) -> Sequence[RoutedBlock]:
        """The blocks in their order."""
        return cast("Sequence[RoutedBlock]", self.blocks)

    def macs(self, output: Output) -> float:
        """Multiply-accumulates of one word, the mean of those that gave this output."""
        shape, total, left = cast("Any", output.tokens.shape), 0, iter(output.routings)
        for block in self.chain:
            total += block.attention.macs(next(left), shape) + spent(block.layer, left, shape)
        return self.head.weight.numel() + total / max(1, shape[0] * shape[1])
