"""From the stream back to the original network's basis, and on to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.ops.attention import attend
from nestor.ops.bands import Band, normalise, unsort
from nestor.ops.linear import ACTIVATIONS, rows_per_unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.layers.nested import Nest

HEADS = ("class", "mean", "mean_then_norm", "class_mean", "class_distill", "attention")


@final
class Readout(nn.Module):
    """The final norm and, for each expert, the map from its channels to the original basis.

    A narrow token knows its first d channels only; its map may be the full map's slice or one fitted to it, so that
    what can be told of the other channels is told: one (D, d) matrix and one bias for each expert.
    """

    def __init__(self, nest: Nest, eps: float):
        super().__init__()
        self.nest, self.eps = nest, eps
        D = nest.widths[-1]
        # All maps side by side, so that an expert without a token has a zero gradient, not a missing one.
        self.weight = nn.Parameter(torch.cat([torch.eye(D)[:, :d] for d in nest.widths], 1))
        self.bias = nn.Parameter(torch.zeros(nest.experts, D))

    def forward(self, bands: Sequence[Band], order: Tensor) -> Tensor:
        """Bands of (B, n, d) -> (B, T, D), every token in its place."""
        return unsort([self.turn(self.normal(band), band.expert) for band in bands], order)

    def normal(self, band: Band) -> Tensor:
        """The normalised rows of a band (B, n, d)."""
        return normalise(band.rows, band.tail, self.nest.widths[-1], self.eps)

    def front(self, bands: Sequence[Band], count: int) -> Tensor:
        """The first `count` prefix tokens, (B, count, D)."""
        return self.turn(self.normal(bands[0])[:, :count], self.nest.experts - 1)

    def map(self, expert: int) -> Tensor:
        """(D, d): the map of one expert, a view of `weight` (D, sum of all d)."""
        start = sum(self.nest.widths[:expert])
        return self.weight[:, start : start + self.nest.widths[expert]]

    def turn(self, rows: Tensor, expert: int) -> Tensor:
        """Rows of an expert (..., d) -> (..., D)."""
        if rows.shape[-1] == 0:
            return self.bias[expert].to(rows.dtype).expand(*rows.shape[:-1], -1)
        return F.linear(rows, self.map(expert), self.bias[expert])

    def mean(self, bands: Sequence[Band], prefix: int) -> Tensor:
        """The mean of the tokens behind the prefix, (B, D); the mean is taken before the map, which is linear."""
        last = self.nest.experts - 1
        parts, total = [], 0
        for band in bands:
            rows = self.normal(band)[:, prefix if band.expert == last else 0 :]
            if n := rows.shape[1]:
                parts.append(n * self.turn(rows.mean(1), band.expert))
                total += n
        return torch.stack(parts).sum(0) / total

    def mean_then_norm(self, bands: Sequence[Band], prefix: int) -> Tensor:
        """The norm of the mean of the stream behind the prefix, (B, D); channels that nobody wrote count as zero."""
        D, last = self.nest.widths[-1], self.nest.experts - 1
        parts, total = [], 0
        for band in bands:
            rows = band.rows[:, prefix if band.expert == last else 0 :]
            if n := rows.shape[1]:
                parts.append(F.pad(rows.sum(1), (0, D - rows.shape[-1])))
                total += n
        mean = (torch.stack(parts).sum(0) / total).unsqueeze(1)
        return self.turn(normalise(mean, mean.new_zeros(()), D, self.eps), last).squeeze(1)

    def macs(self, sizes: Sequence[int]) -> int:
        """Multiply-accumulates of turning sizes[j] tokens of each expert j."""
        D = self.nest.widths[-1]
        return sum(n * d * D for n, d in zip(sizes, self.nest.widths, strict=True))


@final
class Head(nn.Module):
    """Logits from what a head reads of the tokens; kinds as in `nestor.models.plain.PlainSettings`.

    Args:
        kind: one of HEADS.
        nest: the shape of the network in front.
        classes: how many logits.
        prefix: how many tokens stand before the patches.
        activation, eps: of the attention pooling's own feed-forward layer.
    """

    def __init__(self, *, kind: str, nest: Nest, classes: int, prefix: int, activation: str, eps: float):
        super().__init__()
        D = nest.widths[-1]
        self.kind, self.prefix, self.classes = kind, prefix, classes
        self.linear = nn.Linear(2 * D if kind == "class_mean" else D, classes)
        self.distill = nn.Linear(D, classes) if kind == "class_distill" else None
        self.pool = AttentionPool(nest, activation, eps) if kind == "attention" else None

    def forward(self, readout: Readout, bands: Sequence[Band], order: Tensor) -> Tensor:
        """(B, classes), turning no more tokens into the original basis than the head reads."""
        if self.pool is not None:
            return self.linear(self.pool(readout(bands, order)))
        if self.kind == "mean":
            return self.linear(readout.mean(bands, self.prefix))
        if self.kind == "mean_then_norm":
            return self.linear(readout.mean_then_norm(bands, self.prefix))
        front = readout.front(bands, self.prefix)
        if self.kind == "class_mean":
            return self.linear(torch.cat([front[:, 0], readout.mean(bands, self.prefix)], -1))
        if self.distill is not None:
            return (self.linear(front[:, 0]) + self.distill(front[:, 1])) / 2
        return self.linear(front[:, 0])

    def macs(self, readout: Readout, sizes: Sequence[int]) -> int:
        """Multiply-accumulates of one item's logits, with sizes[j] tokens of expert j."""
        D, last = readout.nest.widths[-1], readout.nest.experts - 1
        used = [int(n > 0) for n in sizes]
        total = self.linear.weight.numel()
        if self.pool is not None:
            return total + readout.macs(sizes) + self.pool.macs(sum(sizes))
        if self.kind == "mean_then_norm":
            return total + D * D
        if self.kind in ("mean", "class_mean"):
            used[last] = int(sizes[last] > self.prefix)
            total += readout.macs(used)
        if self.kind != "mean":
            total += self.prefix * D * D
        return total + (0 if self.distill is None else self.distill.weight.numel())


@final
class AttentionPool(nn.Module):
    """One learned query attends to all tokens, followed by a feed-forward layer (SigLIP's pooling head)."""

    def __init__(self, nest: Nest, activation: str, eps: float):
        super().__init__()
        D, H = nest.widths[-1], nest.hidden[-1]
        self.heads, self.activation, self.fan = nest.heads[-1], activation, rows_per_unit(activation)
        self.query = nn.Parameter(torch.zeros(D))
        self.inward = nn.Linear(D, 3 * D)
        self.outward = nn.Linear(D, D)
        self.norm = nn.LayerNorm(D, eps=eps)
        self.up, self.down = nn.Linear(D, self.fan * H), nn.Linear(H, D)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        D = tokens.shape[-1]
        weight, bias = self.inward.weight, self.inward.bias
        query = F.linear(self.query.to(tokens.dtype), weight[:D], bias[:D]).expand(tokens.shape[0], 1, D)
        key, value = F.linear(tokens, weight[D:], bias[D:]).chunk(2, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        pooled = self.outward(attend(query, key, value).transpose(1, 2).flatten(2))
        return (pooled + self.down(ACTIVATIONS[self.activation](self.up(self.norm(pooled))))).squeeze(1)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of pooling this many tokens."""
        D = len(self.query)
        return 2 * tokens * D * D + 2 * D * D + 2 * tokens * D + self.up.weight.numel() + self.down.weight.numel()
