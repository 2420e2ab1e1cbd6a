"""A score that asks a token's neighbours: one step over a graph of tokens, then a choice (GNN-MoE)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.routing.score import Score

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.types import Signal


def around(tokens: Tensor, signal: Signal) -> Tensor:
    """(1, N, N): true for a patch, itself and the up to eight patches around it on the signal's grid.

    Raises:
        ValueError: when the signal has no grid, or one of another number of patches.
    """
    N = tokens.shape[1]
    if signal.grid is None or signal.grid[0] * signal.grid[1] != N:
        raise ValueError(f"neighbours on a grid need Signal(grid=...) of {N} patches; got {signal.grid}.")
    each = torch.arange(N, device=tokens.device)
    row, column = each // signal.grid[1], each % signal.grid[1]
    near = (row[:, None] - row).abs().le(1) & (column[:, None] - column).abs().le(1)
    return near.unsqueeze(0)


def nearest(tokens: Tensor, signal: Signal, *, k: int = 8) -> Tensor:
    """(B, N, N): true for a token, itself and the k tokens of its item with the highest cosine to it, both ways."""
    unit = F.normalize(tokens.float(), dim=-1)
    likeness = unit @ unit.mT
    if signal.mask is not None:
        likeness = likeness.masked_fill(~signal.mask.unsqueeze(1), -torch.inf)
    N = tokens.shape[1]
    chosen = likeness.sort(dim=-1, descending=True, stable=True).indices[..., : min(N, k + 1)]
    near = torch.zeros_like(likeness, dtype=torch.bool).scatter(-1, chosen, True)
    near = near | near.mT
    if signal.mask is not None:
        near = near & signal.mask.unsqueeze(1) & signal.mask.unsqueeze(2)
    return near | torch.eye(N, dtype=torch.bool, device=tokens.device)


def alone(tokens: Tensor, signal: Signal) -> Tensor:
    """(1, N, N): true for a token and itself."""
    return torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device).unsqueeze(0)


@final
class Graph(Score):
    """A graph convolution, ReLU, and a linear map to the experts: r = W2 relu(A x W1 + b), A normalised both ways.

    Tokens that stand before the grid of patches, such as a class token, get the mean of the logits of those patches
    that count.

    Args:
        width: D.
        hidden: units of the convolution.
        experts: E.
        neighbours: which tokens (1 or B, N, N) hear one another: `around`, `nearest`, `alone` or one of your own.
    """

    def __init__(
        self, width: int, hidden: int, experts: int, *, neighbours: Callable[[Tensor, Signal], Tensor] = around
    ):
        super().__init__()
        self.neighbours = neighbours
        self.inward = nn.Parameter(torch.randn(hidden, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.outward = nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        first = 0 if signal.grid is None else tokens.shape[1] - signal.grid[0] * signal.grid[1]
        if first < 0:
            raise ValueError(f"the grid must fit the tokens; got {signal.grid} for {tokens.shape[1]} tokens.")
        with torch.autocast(tokens.device.type, enabled=False):
            patches = tokens[:, first:].float()
            mask, ids = (part if part is None else part[:, first:] for part in (signal.mask, signal.ids))
            near = self.neighbours(patches, replace(signal, mask=mask, ids=ids)).float()
            if mask is not None:
                counting = mask.float()
                near = near * counting.unsqueeze(1) * counting.unsqueeze(2)
            scale = near.sum(-1).clamp_min(1).rsqrt()
            flow = near * scale.unsqueeze(-1) * scale.unsqueeze(-2)
            hidden = flow @ F.linear(patches, self.inward.float()) + self.bias.float()
            logits = F.linear(F.relu(hidden), self.outward.float())
        if not first:
            return logits
        mean = logits.mean(1, keepdim=True)
        if mask is not None:
            number = mask.sum(1, keepdim=True).clamp_min(1)
            mean = (logits.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / number).unsqueeze(1)
        return torch.cat([mean.expand(-1, first, -1), logits], 1)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * (self.inward.numel() + self.outward.numel() + tokens * len(self.bias))
