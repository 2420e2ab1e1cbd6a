"""Scores with weights of their own: a token is compared with what each expert has learned to look for.

All of them work in single precision, whatever surrounds them: half precision makes ties out of differences that decide.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.routing.score import Score, linear

if TYPE_CHECKING:
    from nestor.types import Signal


@final
class Dot(Score):
    """A learned key for each expert: r = W x, W drawn with variance 1/D so that experts differ from the start."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, width) * width**-0.5)

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        return linear(tokens, self.weight)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * self.weight.numel()


@final
class Cosine(Score):
    """Cosine between a projection of the token and each expert's key, divided by a learned temperature.

    The temperature cannot fall below `floor`, so that logits stay within 1 / floor.

    Args:
        width: D.
        experts: E.
        project: width of the projection in which angles are taken.
        temperature: at the start.
        floor: the least temperature.
    """

    def __init__(self, width: int, experts: int, *, project: int, temperature: float = 0.5, floor: float = 0.01):
        super().__init__()
        self.project = nn.Parameter(torch.randn(project, width) * width**-0.5)
        self.keys = nn.Parameter(torch.randn(experts, project) * project**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.reach = -math.log(floor)

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        angle = linear(_unit(linear(tokens, self.project)), _unit(self.keys.float()))
        return angle * self.log_scale.float().clamp(max=self.reach).exp()

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * (self.project.numel() + self.keys.numel())


@final
class MLP(Score):
    """Two linear maps with GELU between them.

    Args:
        width: D.
        hidden: units between the maps.
        experts: E.
    """

    def __init__(self, width: int, hidden: int, experts: int):
        super().__init__()
        self.inward = nn.Parameter(torch.randn(hidden, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.outward = nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        return linear(F.gelu(linear(tokens, self.inward) + self.bias.float()), self.outward)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * (self.inward.numel() + self.outward.numel())


@final
class ProductKey(Score):
    """Experts in a square: (i, j) gets what row i says of one half of a query plus what column j says of the other.

    So E logits cost as much as 2 sqrt(E) of them.

    Args:
        width: D.
        experts: E, a square.
        query: width of the query, even.

    Raises:
        ValueError: when E is not a square or the query cannot be halved.
    """

    def __init__(self, width: int, experts: int, *, query: int):
        super().__init__()
        side = math.isqrt(experts)
        if side * side != experts or query % 2 or query < 2:
            raise ValueError(
                f"product keys need a square number of experts and an even query; got {experts} and {query}. "
                f"Take {side * side} or {(side + 1) ** 2} experts and a query of {max(2, query + query % 2)}."
            )
        self.query = nn.Parameter(torch.randn(query, width) * width**-0.5)
        self.keys = nn.Parameter(torch.randn(2, side, query // 2) * query**-0.5)

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        first, second = linear(tokens, self.query).chunk(2, -1)
        rows, columns = linear(first, self.keys[0]), linear(second, self.keys[1])
        return (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * (self.query.numel() + self.keys.numel())


@final
class Slots(Score):
    """Cosine between token and slot times a learned scale: the score of Soft MoE, E * C numbers for each token.

    Args:
        width: D.
        experts: E.
        slots: C, slots of each expert.
    """

    def __init__(self, width: int, experts: int, *, slots: int):
        super().__init__()
        self.phi = nn.Parameter(torch.randn(experts * slots, width) * width**-0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E * C), the slots of one expert side by side."""
        return linear(_unit(tokens.float()), self.scale.float() * _unit(self.phi.float()))

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * self.phi.numel()


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1, eps=1e-6)
