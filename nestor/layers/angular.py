"""Attention whose cost grows linearly with the tokens: the angle between query and key, without a softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.layers.block import SelfAttention

NEAR = 9
"""Tokens that the convolution over neighbours sees."""


def unit(rows: Tensor) -> Tensor:
    """Rows (..., e) of length one."""
    return F.normalize(rows, dim=-1, eps=1e-6)


def binary(rows: Tensor) -> Tensor:
    """1 where a row of length one (..., e) exceeds its own mean, else 0: a product with it is a sum of some numbers.

    Gradients pass as if the row had been clamped to [0, 1].
    """
    length_one = unit(rows)
    code = (length_one > length_one.mean(-1, keepdim=True)).to(rows.dtype)
    smooth = length_one.clamp(0, 1)
    return code + (smooth - smooth.detach())


@final
class AngularAttention(nn.Module):
    """v / 2 + code(q) (code(k)^T v) / pi, of length one in each head, plus a convolution of v over nearby tokens.

    The two products take T e^2 steps in each head, not T^2 e. The convolution is zero at first.

    Args:
        width: D.
        heads: a divisor of D.
        code: of queries and keys (..., e): `unit`, `binary` or one of your own.

    Raises:
        ValueError: when the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, code: Callable[[Tensor], Tensor] = unit):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width {width}; got {heads}.")
        self.heads, self.code = heads, code
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.near = nn.Parameter(torch.zeros(width, 1, NEAR))

    @classmethod
    def of(cls, attention: SelfAttention | AngularAttention, code: Callable[[Tensor], Tensor]) -> AngularAttention:
        """The same projections, and where it has one the same convolution, under another code."""
        made = cls(attention.outward.in_features, attention.heads, code)
        made.load_state_dict(attention.state_dict(), strict=False)
        return made

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inward(tokens).chunk(3, -1)
        )
        mixed = value / 2 + self.code(query) @ (self.code(key).mT @ value) / math.pi
        mixed = unit(mixed).transpose(1, 2).flatten(2)
        values = value.transpose(1, 2).flatten(2)
        # torch's convolution over nothing is an error.
        wide = values if values.shape[1] else values.new_zeros(len(values), 1, values.shape[-1])
        nearby = F.conv1d(wide.mT, self.near.to(wide.dtype), padding=NEAR // 2, groups=wide.shape[-1]).mT
        nearby = nearby[:, : values.shape[1]]
        return self.outward(mixed + nearby)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one item with this many tokens; with a binary code, `products` of them only add."""
        D = self.outward.in_features
        return 4 * tokens * D * D + NEAR * tokens * D + self.products(tokens)

    def products(self, tokens: int) -> int:
        """Multiply-accumulates of codes with values, of one item with this many tokens."""
        D = self.outward.in_features
        return 2 * tokens * D * (D // self.heads)
