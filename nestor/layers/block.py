"""A plain transformer block whose feed-forward part may be any layer: a mixture, one network, or something shared."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.ops.attention import attend

if TYPE_CHECKING:
    from nestor.layers.mixture import Mixture
    from nestor.types import Experts, Routing, Signal


@final
class SelfAttention(nn.Module):
    """Multi-head self-attention over the tokens of an item.

    Args:
        width: D.
        heads: a divisor of D.

    Raises:
        ValueError: when the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width {width}; got {heads}.")
        self.heads = heads
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inward(tokens).chunk(3, -1)
        )
        return self.outward(attend(query, key, value).transpose(1, 2).flatten(2))

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one item with this many tokens."""
        D = self.outward.in_features
        return 4 * tokens * D * D + 2 * tokens * tokens * D


@final
class Dense(nn.Module):
    """One network for all tokens, called as a mixture is: no decision is taken.

    Args:
        experts: a single one.

    Raises:
        ValueError: when there are several.
    """

    def __init__(self, experts: Experts):
        super().__init__()
        if len(experts.costs) != 1:
            raise ValueError(f"a dense layer has one expert; got {len(experts.costs)}. Use Mixture with a router.")
        self.experts = experts

    def forward(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D') and no decision; a masked token gets zero."""
        gone = None if signal is None or signal.mask is None else ~signal.mask.unsqueeze(-1)
        # Padding may hold anything; what is computed of it would still reach the gradient.
        rows = (tokens if gone is None else tokens.masked_fill(gone, 0)).flatten(0, -2)
        answer = self.experts(rows, torch.tensor([len(rows)], device=rows.device)).unflatten(0, tokens.shape[:-1])
        return answer if gone is None else answer.masked_fill(gone, 0), ()

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one item with this many tokens."""
        return tokens * self.experts.costs[0]


@final
class Block(nn.Module):
    """x + attention(norm(x)), then x + layer(norm(x)); only the norms are sure to be the block's own.

    Args:
        width: D.
        attention: of tokens.
        layer: a mixture or one network.
        eps: of the norms.
    """

    def __init__(self, width: int, attention: SelfAttention, layer: Mixture | Dense, *, eps: float = 1e-6):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.attention, self.layer = attention, layer

    def forward(self, tokens: Tensor, signal: Signal) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D) and the decisions taken."""
        tokens = tokens + self.attention(self.norm1(tokens))
        answer, routings = self.layer(self.norm2(tokens), signal)
        return tokens + answer, routings
