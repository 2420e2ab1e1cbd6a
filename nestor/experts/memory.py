"""Experts that remember: a table of values, of which a token reads a few."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from nestor.experts.feedforward import uniform
from nestor.ops import grouped
from nestor.types import Experts


@final
class Memory(Experts):
    """y = the mean of k of n * n values, weighted by the softmax of their keys' products with a query (product keys).

    A key is a pair of one of n first and one of n second halves, so that n * n keys are searched at the price of 2 n:
    the k best pairs are among the pairs of the k best halves.

    Args:
        width: D.
        side: n.
        experts: E memories.
        query: width of a query, even.
        read: k.
        out: D', D unless given.

    Raises:
        ValueError: when the query cannot be halved or k does not lie in [1, n * n].
    """

    def __init__(self, width: int, side: int, experts: int, *, query: int, read: int, out: int | None = None):
        super().__init__()
        if query < 2 or query % 2 or not 1 <= read <= side * side:
            raise ValueError(
                f"a memory needs an even query and 1 to {side * side} values to read; got {query} and {read}."
            )
        self.side, self.read = side, read
        self.query = nn.Parameter(uniform(experts, query, width))
        self.first = nn.Parameter(uniform(experts, side, query // 2))
        self.second = nn.Parameter(uniform(experts, side, query // 2))
        out = width if out is None else out
        self.values = nn.Parameter(torch.randn(experts, side * side, out) * out**-0.5)

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        n, E = self.side, len(self.values)
        asked = grouped.linear(rows, counts, self.query).chunk(2, -1)
        halves = [
            grouped.linear(part.contiguous(), counts, key).float()
            for part, key in zip(asked, (self.first, self.second), strict=True)
        ]
        (one, i), (two, j) = (half.topk(min(self.read, n), -1) for half in halves)
        pairs = (one.unsqueeze(-1) + two.unsqueeze(-2)).flatten(1)
        likeness, best = pairs.topk(self.read, -1)
        place = (i.unsqueeze(-1) * n + j.unsqueeze(-2)).flatten(1).gather(1, best)
        expert = torch.arange(E, device=rows.device).repeat_interleave(counts, output_size=len(rows))
        found = self.values.flatten(0, 1)[place + (expert * n * n).unsqueeze(1)]
        return torch.einsum("rk,rkd->rd", likeness.softmax(-1).to(found.dtype), found).to(asked[0].dtype)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        each = self.query[0].numel() + 2 * self.first[0].numel() + self.read * self.values.shape[-1]
        return (each,) * len(self.values)
