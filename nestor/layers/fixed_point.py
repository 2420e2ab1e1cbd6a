"""A block as an accelerator computes it: fixed-point numbers between all parts, and attention in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import Tensor, nn

from nestor.ops.streaming import attend_in_one_pass

if TYPE_CHECKING:
    from nestor.layers.block import Block, Dense, SelfAttention
    from nestor.layers.mixture import Mixture
    from nestor.ops.rounded import FixedPoint
    from nestor.types import Routing, Signal


@final
class StreamedAttention(nn.Module):
    """The same attention, its keys and values read one after the other, and rounded numbers in and out.

    Args:
        attention: whose weights are used.
        numbers: of tokens.
    """

    def __init__(self, attention: SelfAttention, numbers: FixedPoint):
        super().__init__()
        self.attention, self.numbers = attention, numbers

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        inner = self.numbers(self.attention.inward(tokens))
        query, key, value = (
            part.unflatten(-1, (self.attention.heads, -1)).transpose(1, 2) for part in inner.chunk(3, -1)
        )
        read = self.numbers(attend_in_one_pass(query, key, value)).transpose(1, 2).flatten(2)
        return self.numbers(self.attention.outward(read))

    def macs(self, tokens: int) -> int:
        """Those of the attention."""
        return self.attention.macs(tokens)


@final
class FixedPointBlock(nn.Module):
    """What a block computes, each sublayer's input and answer and the stream rounded.

    Args:
        block: whose parts are used.
        numbers: of tokens.
    """

    def __init__(self, block: Block, numbers: FixedPoint):
        super().__init__()
        self.norm1, self.norm2, self.numbers = block.norm1, block.norm2, numbers
        self.attention: StreamedAttention = StreamedAttention(block.attention, numbers)
        self.layer: Mixture | Dense = block.layer

    def forward(self, tokens: Tensor, signal: Signal) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D) and the decisions taken."""
        r = self.numbers
        tokens = r(r(tokens) + self.attention(r(self.norm1(tokens))))
        answer, routings = self.layer(r(self.norm2(tokens)), signal)
        return r(tokens + r(answer)), routings
