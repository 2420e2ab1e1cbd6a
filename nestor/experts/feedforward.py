"""Stacked feed-forward experts: E networks of one shape, in one tensor for each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.ops import grouped
from nestor.types import Experts

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class Activation:
    """What stands between two linear maps: `apply` takes `fan` numbers for each hidden unit, all first ones first."""

    fan: int
    apply: Callable[[Tensor], Tensor]


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


GELU = Activation(fan=1, apply=F.gelu)
RELU = Activation(fan=1, apply=F.relu)
SWIGLU = Activation(fan=2, apply=_swiglu)


@final
class FeedForward(Experts):
    """y = W2 act(W1 x + b1) + b2 for each expert.

    Args:
        width: D.
        hidden: units of each expert.
        experts: E.
        activation: `GELU`, `RELU`, `SWIGLU` or one of your own.
        bias: whether there are b1 and b2.
        out: D', D unless given.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        *,
        activation: Activation = GELU,
        bias: bool = True,
        out: int | None = None,
    ):
        super().__init__()
        out = width if out is None else out
        self.activation = activation
        self.inward = nn.Parameter(uniform(experts, activation.fan * hidden, width))
        self.inward_bias = nn.Parameter(torch.zeros(experts, activation.fan * hidden)) if bias else None
        self.outward = nn.Parameter(uniform(experts, out, hidden))
        self.outward_bias = nn.Parameter(torch.zeros(experts, out)) if bias else None

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        hidden = self.activation.apply(grouped.linear(rows, counts, self.inward, self.inward_bias))
        return grouped.linear(hidden, counts, self.outward, self.outward_bias)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return (self.inward[0].numel() + self.outward[0].numel(),) * len(self.inward)


def uniform(*shape: int) -> Tensor:
    """Weights (..., O, D) drawn between -1 and 1 over the square root of D, as torch's own linear maps are."""
    return (torch.rand(*shape) * 2 - 1) * shape[-1] ** -0.5
