"""The sublayers of a nested transformer: every expert is a prefix of the same weights.

Weights are folded (see nestor.surgery.fold): norms have no parameters of their own. Each expert has its own biases,
because a narrow token leaves out parts whose mean is best made up for (one row each, free at run time).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.ops.attention import attend
from nestor.ops.bands import Band, normalise
from nestor.ops.linear import activated, added, linear, rows_per_unit
from nestor.ops.thin import sizes

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Nest:
    """The shape of E nested experts, from the narrowest to the whole network.

    A token of expert j reads and writes the first widths[j] channels of the residual stream, uses the first hidden[j]
    units of each feed-forward layer and asks in the first heads[j] heads; keys and values of all heads are offered by
    every token. Width 0 is a skip: the token takes no part at all.

    Experts are slices of the same weights. With `own`, the narrow ones have two matrices of their own in each layer,
    where a slice loses most: keys, values and queries, and the feed-forward answer. They start as slices too, cost
    nothing at run time and can be fitted without touching the whole network.

    With `merge`, as many tokens as this share of the narrow ones merge on the way (nestor.ops.thin), so that the same
    budget leaves more of the others at full width.

    Raises:
        ValueError: when widths do not increase or the three disagree in length, `merge` lies outside [0, 1), or a skip,
            which has nothing to compare, would have to merge.
    """

    widths: tuple[int, ...]
    hidden: tuple[int, ...]
    heads: tuple[int, ...]
    own: bool = False
    merge: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.hidden) == len(self.heads) or not self.widths:
            raise ValueError(
                f"widths, hidden and heads must name the same experts; got {len(self.widths)}, {len(self.hidden)} and "
                f"{len(self.heads)} of them. Give one number of each for every expert."
            )
        if self.widths[0] < 0 or any(b <= a for a, b in pairwise(self.widths)):
            raise ValueError(
                f"widths must increase from expert to expert and not be negative; got {self.widths}. "
                "Sort them and drop repeats."
            )
        for name, parts in (("hidden", self.hidden), ("heads", self.heads)):
            if any(b < a for a, b in pairwise(parts)):
                raise ValueError(f"{name} must not fall from expert to expert; got {parts}. Sort them.")
        for width, hidden, heads in zip(self.widths, self.hidden, self.heads, strict=True):
            if width and (hidden < 1 or heads < 1):
                raise ValueError(
                    f"an expert with {width} channels needs at least one hidden unit and one head; "
                    f"got {hidden} and {heads}. Use width 0 for a skip."
                )

        if not 0 <= self.merge < 1:
            raise ValueError(f"merge must lie in [0, 1), a share of the narrow tokens; got {self.merge}. Take 0.7.")
        if self.merge and self.widths[0] == 0:
            raise ValueError(f"merging compares channels, and a skip has none; got widths {self.widths}. Set merge=0.")

    @property
    def experts(self) -> int:
        """E."""
        return len(self.widths)


@final
class Attention(nn.Module):
    """Self-attention in which tokens of different widths attend to one another.

    q, k, v = u[:d] W[:, :d]^T + b_j, always full for k and v; the answer is written to the first d channels
    (MoNE, section 3.1). The rows of `inward` are keys, values, queries, so that fewer query heads are a prefix too.
    """

    def __init__(self, nest: Nest, eps: float):
        super().__init__()
        self.nest, self.eps = nest, eps
        D, E = nest.widths[-1], nest.experts
        self.inward = nn.Parameter(torch.empty(3 * D, D))
        self.inward_bias = nn.Parameter(torch.zeros(E, 3 * D))
        self.inward_own = nn.Parameter(torch.zeros(3 * D, sum(nest.widths[:-1]))) if nest.own and E > 1 else None
        self.outward = nn.Parameter(torch.empty(D, D))
        self.outward_bias = nn.Parameter(torch.zeros(E, D))
        nn.init.xavier_uniform_(self.inward)
        nn.init.xavier_uniform_(self.outward)

    def forward(self, bands: Sequence[Band]) -> tuple[Band, ...]:
        """Bands of (B, n, d) -> the same bands with attention's answer added."""
        D, each = self.nest.widths[-1], self.nest.widths[-1] // self.nest.heads[-1]
        active = [band for band in bands if self.nest.widths[band.expert]]
        skipped = [band for band in bands if not self.nest.widths[band.expert]]
        inward, size = [self._ask(band) for band in active], sizes(active)
        if len({part.shape[-1] for part in inward}) == 1:
            # One call for all queries is faster than one for each band.
            joined = torch.cat(inward, 1) if len(inward) > 1 else inward[0]
            del inward  # Else both would be held at once.
            key, value, query = (_heads(part, each) for part in joined.split(D, -1))
            mixed = attend(query, key, value, size).transpose(1, 2).flatten(2)
            answers = mixed.split([band.rows.shape[1] for band in active], 1)
        else:
            offered = torch.cat([part[..., : 2 * D] for part in inward], 1)
            key, value = (_heads(part, each) for part in offered.split(D, -1))
            answers = [_attend(_heads(part[..., 2 * D :], each), key, value, size) for part in inward]
        stepped = [self._tell(band, answer) for band, answer in zip(active, answers, strict=True)]
        return (*stepped, *skipped)

    def inward_of(self, expert: int) -> Tensor:
        """(rows, d): the matrix that gives an expert's keys, values and queries; a view of the stored one."""
        D, d = self.nest.widths[-1], self.nest.widths[expert]
        rows = 2 * D + self.nest.heads[expert] * (D // self.nest.heads[-1])
        if self.inward_own is None or expert == self.nest.experts - 1:
            return self.inward[:rows, :d]
        start = sum(self.nest.widths[:expert])
        return self.inward_own[:rows, start : start + d]

    def _ask(self, band: Band) -> Tensor:
        """Keys, values and as many queries as the expert has heads for, (B, n, 2D + ...)."""
        weight = self.inward_of(band.expert)
        u = normalise(band.rows, band.tail, self.nest.widths[-1], self.eps)
        return linear(u, weight, self.inward_bias[band.expert, : len(weight)])

    def _tell(self, band: Band, answer: Tensor) -> Band:
        d = self.nest.widths[band.expert]
        # Contiguous, because a strided batch would be multiplied without the fused bias.
        weight, bias = self.outward[:d, : answer.shape[-1]], self.outward_bias[band.expert, :d]
        return replace(band, rows=added(answer.contiguous(), weight, bias, band.rows))

    def macs(self, sizes: Sequence[int]) -> int:
        """Multiply-accumulates of one item with sizes[j] tokens of expert j; keys of skipped tokens do not exist."""
        return _attention_macs(self.nest, sizes)


@final
class FeedForward(nn.Module):
    """act(u[:d] W1[:h, :d]^T + b1) W2[:d, :h]^T + b2, added to the first d channels.

    The answer is multiplied by (alpha * r + 1), where r is the router's probability of the token's expert and alpha a
    learnable number, zero at first and kept in [0, 1]: through it the router learns (MoNE, section 3.2).
    """

    def __init__(self, nest: Nest, eps: float, activation: str):
        super().__init__()
        self.nest, self.eps, self.activation = nest, eps, activation
        D, H, E = nest.widths[-1], nest.hidden[-1], nest.experts
        self.fan = rows_per_unit(activation)
        self.inward = nn.Parameter(torch.empty(self.fan * H, D))
        self.inward_bias = nn.Parameter(torch.zeros(E, self.fan * H))
        self.outward = nn.Parameter(torch.empty(D, H))
        sizes = [d * h for d, h in zip(nest.widths[:-1], nest.hidden[:-1], strict=True)]
        self.outward_own = nn.Parameter(torch.zeros(sum(sizes))) if nest.own and E > 1 else None
        self.outward_bias = nn.Parameter(torch.zeros(E, D))
        self.alpha = nn.Parameter(torch.zeros(())) if E > 1 else None
        nn.init.xavier_uniform_(self.inward)
        nn.init.xavier_uniform_(self.outward)

    def forward(self, bands: Sequence[Band]) -> tuple[Band, ...]:
        """Bands of (B, n, d) -> the same bands with the feed-forward answer added."""
        return tuple(self._answer(band) if self.nest.widths[band.expert] else band for band in bands)

    def outward_of(self, expert: int) -> Tensor:
        """(d, h): the matrix that writes an expert's answer; a view of the stored one."""
        d, h = self.nest.widths[expert], self.nest.hidden[expert]
        if self.outward_own is None or expert == self.nest.experts - 1:
            return self.outward[:d, :h]
        start = sum(a * b for a, b in zip(self.nest.widths[:expert], self.nest.hidden[:expert], strict=True))
        return self.outward_own[start : start + d * h].view(d, h)

    def _answer(self, band: Band) -> Band:
        j = band.expert
        d, h = self.nest.widths[j], self.nest.hidden[j]
        u = normalise(band.rows, band.tail, self.nest.widths[-1], self.eps)
        inward, bias = self.inward[: self.fan * h, :d], self.inward_bias[j, : self.fan * h]
        act = activated(u, inward, bias, self.activation)
        outward, bias = self.outward_of(j), self.outward_bias[j, :d]
        if band.gate is None or self.alpha is None:
            return replace(band, rows=added(act, outward, bias, band.rows))
        write = linear(act, outward, bias)
        # The gradient passes the clamp, so that an alpha pushed below zero can come back.
        alpha = self.alpha + (self.alpha.clamp(0, 1) - self.alpha).detach()
        gate = 1 + alpha * band.gate
        return replace(band, rows=torch.addcmul(band.rows, write, gate.to(write.dtype)))

    def macs(self, sizes: Sequence[int]) -> int:
        """Multiply-accumulates of one item with sizes[j] tokens of expert j."""
        return _feedforward_macs(self.nest, self.fan, sizes)


@final
class NestedBlock(nn.Module):
    """Attention, then feed-forward, each on what the norm gives and added to the stream."""

    def __init__(self, nest: Nest, eps: float, activation: str):
        super().__init__()
        self.nest, self.fan = nest, rows_per_unit(activation)
        self.attention = Attention(nest, eps)
        self.mlp = FeedForward(nest, eps, activation)

    def forward(self, bands: Sequence[Band]) -> tuple[Band, ...]:
        """Bands -> bands."""
        return self.mlp(self.attention(bands))

    def macs(self, sizes: Sequence[int]) -> int:
        """Multiply-accumulates of one item with sizes[j] tokens of expert j."""
        # Known from the shape alone, since adapters put modules of their own in the place of these two.
        return _attention_macs(self.nest, sizes) + _feedforward_macs(self.nest, self.fan, sizes)


def _heads(rows: Tensor, each: int) -> Tensor:
    return rows.unflatten(-1, (-1, each)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, size: Tensor | None) -> Tensor:
    heads = query.shape[1]
    return attend(query, key[:, :heads], value[:, :heads], size).transpose(1, 2).flatten(2)


def _attention_macs(nest: Nest, sizes: Sequence[int]) -> int:
    D = nest.widths[-1]
    each = D // nest.heads[-1]
    keys = sum(n for n, d in zip(sizes, nest.widths, strict=True) if d)
    total = 0
    for n, d, heads in zip(sizes, nest.widths, nest.heads, strict=True):
        if d:
            total += n * (d * (2 * D + heads * each) + heads * each * d + 2 * keys * heads * each)
    return total


def _feedforward_macs(nest: Nest, fan: int, sizes: Sequence[int]) -> int:
    return sum(n * (fan + 1) * d * h for n, d, h in zip(sizes, nest.widths, nest.hidden, strict=True))
