"""Experts whose weights take few values, so that hardware can add where others multiply."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.experts.feedforward import GELU, Activation, uniform
from nestor.ops import grouped
from nestor.types import Experts

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST = -14
"""The smallest exponent of a shift."""


def shift(weight: Tensor) -> Tensor:
    """The nearest power of two with the weight's sign, between 2^-14 and 1: a multiplication becomes a bit shift."""
    exponent = weight.float().abs().clamp_min(2.0 ** (LEAST - 1)).log2().round().clamp(LEAST, 0)
    return (weight.float().sign() * torch.exp2(exponent)).to(weight.dtype)


def ternary(weight: Tensor) -> Tensor:
    """-s, 0 or s, with s the mean size of the last two dimensions: a multiplication becomes an addition or nothing."""
    size = weight.float().abs().mean((-2, -1), keepdim=True).clamp_min(1e-20)
    return ((weight.float() / size).round().clamp(-1, 1) * size).to(weight.dtype)


@final
class Rounded(Experts):
    """y = round(W2) act(round(W1) x + b1) + b2 for each expert; gradients reach the unrounded weights as they are.

    Args:
        width: D.
        hidden: units of each expert.
        experts: E.
        rounding: `shift`, `ternary` or one of your own.
        activation: as with `FeedForward`.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        *,
        rounding: Callable[[Tensor], Tensor] = shift,
        activation: Activation = GELU,
    ):
        super().__init__()
        self.rounding, self.activation = rounding, activation
        self.inward = nn.Parameter(uniform(experts, activation.fan * hidden, width))
        self.inward_bias = nn.Parameter(torch.zeros(experts, activation.fan * hidden))
        self.outward = nn.Parameter(uniform(experts, width, hidden))
        self.outward_bias = nn.Parameter(torch.zeros(experts, width))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D)."""
        inward, outward = (self._rounded(weight) for weight in (self.inward, self.outward))
        hidden = self.activation.apply(grouped.linear(rows, counts, inward, self.inward_bias))
        return grouped.linear(hidden, counts, outward, self.outward_bias)

    @property
    def costs(self) -> tuple[int, ...]:
        """Accumulates of one row, for each expert: as many as of a `FeedForward`, without its multiplications."""
        return (self.inward[0].numel() + self.outward[0].numel(),) * len(self.inward)

    def _rounded(self, weight: Tensor) -> Tensor:
        return self.rounding(weight.detach()) + (weight - weight.detach())
