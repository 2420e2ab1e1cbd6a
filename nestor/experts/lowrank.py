"""Experts with few weights: additions to a network that stays as it is. All of them answer zero at first."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from nestor.experts.feedforward import RELU, Activation, uniform
from nestor.ops import grouped
from nestor.types import Experts


@final
class LoRA(Experts):
    """y = scale * B A x: a linear map of low rank for each expert.

    Args:
        width: D.
        rank: of the map.
        experts: E.
        scale: usually alpha / rank.
        out: D', D unless given.
    """

    def __init__(self, width: int, rank: int, experts: int, *, scale: float = 1.0, out: int | None = None):
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(uniform(experts, rank, width))
        self.up = nn.Parameter(torch.zeros(experts, width if out is None else out, rank))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        return self.scale * grouped.linear(grouped.linear(rows, counts, self.down), counts, self.up)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return (self.down[0].numel() + self.up[0].numel(),) * len(self.down)


@final
class Bottleneck(Experts):
    """y = scale * (W2 act(W1 x + b1) + b2) with few hidden units: an adapter for each expert.

    Args:
        width: D.
        hidden: units.
        experts: E.
        activation: between the maps.
        scale: of the answer.
    """

    def __init__(self, width: int, hidden: int, experts: int, *, activation: Activation = RELU, scale: float = 1.0):
        super().__init__()
        self.activation, self.scale = activation, scale
        self.down = nn.Parameter(uniform(experts, activation.fan * hidden, width))
        self.down_bias = nn.Parameter(torch.zeros(experts, activation.fan * hidden))
        self.up = nn.Parameter(torch.zeros(experts, width, hidden))
        self.up_bias = nn.Parameter(torch.zeros(experts, width))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D)."""
        hidden = self.activation.apply(grouped.linear(rows, counts, self.down, self.down_bias))
        return self.scale * grouped.linear(hidden, counts, self.up, self.up_bias)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return (self.down[0].numel() + self.up[0].numel(),) * len(self.down)


@final
class Kronecker(Experts):
    """y = x W with W = scale * sum over t terms of A_n (x) u_n v_n^T, never formed: t^3 + (D + D') r numbers an expert.

    Args:
        width: D, a multiple of the terms.
        terms: t, how many products are added, and the side of each A.
        rank: r.
        experts: E.
        scale: of the answer.
        out: D', D unless given; a multiple of the terms.

    Raises:
        ValueError: when the terms do not divide the widths.
    """

    def __init__(self, width: int, terms: int, rank: int, experts: int, *, scale: float = 1.0, out: int | None = None):
        super().__init__()
        out = width if out is None else out
        if terms < 1 or width % terms or out % terms:
            raise ValueError(f"terms must divide the widths {width} and {out}; got {terms}.")
        self.terms, self.rank, self.scale = terms, rank, scale
        self.mix = nn.Parameter(uniform(experts, terms, terms, terms))
        # Rows are (term, rank), so that one grouped product serves all terms.
        self.u = nn.Parameter(torch.zeros(experts, terms * rank, width // terms))
        self.v = nn.Parameter(uniform(experts, out // terms, terms * rank))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        R, t = len(rows), self.terms
        cells = rows.unflatten(1, (t, -1)).flatten(0, 1)
        inner = grouped.linear(cells, counts * t, self.u).view(R, t, t, self.rank)
        mix = self.mix.to(inner.dtype).repeat_interleave(counts, 0, output_size=R)
        mixed = torch.einsum("rinq,rnij->rjnq", inner, mix)
        written = grouped.linear(mixed.flatten(2).flatten(0, 1), counts * t, self.v)
        return self.scale * written.unflatten(0, (R, t)).flatten(1)

    def matrix(self, expert: int) -> Tensor:
        """(D, D'): what an expert multiplies rows by, formed."""
        u, v = self.u[expert].unflatten(0, (self.terms, -1)), self.v[expert].unflatten(1, (self.terms, -1))
        inner = torch.einsum("nqk,lnq->nkl", u, v)
        terms = [torch.kron(a.contiguous(), w.contiguous()) for a, w in zip(self.mix[expert], inner, strict=True)]
        return self.scale * torch.stack(terms).sum(0)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        t = self.terms
        return (t * (self.u[0].numel() + self.v[0].numel() + t * t * self.rank),) * len(self.u)
