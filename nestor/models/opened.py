"""Attention of a dense network's block in two halves, for what looks at queries and keys between them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch.nn import functional as F

from nestor.ops.bands import Band, normalise

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.layers.nested import NestedBlock


def ask(block: NestedBlock, band: Band) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the tokens (B, T, D) of a band, each (B, heads, T, D / heads)."""
    part, D = block.attention, band.rows.shape[-1]
    u = normalise(band.rows, band.tail, D, part.eps)
    mixed = F.linear(u, part.inward, part.inward_bias[0])
    key, value, query = (x.unflatten(-1, (part.nest.heads[-1], -1)).transpose(1, 2) for x in mixed.split(D, -1))
    return query, key, value


def tell(block: NestedBlock, band: Band, answer: Tensor) -> Band:
    """The band with attention's answer (B, heads, T, D / heads) written to its tokens (B, T, D)."""
    part = block.attention
    write = F.linear(answer.transpose(1, 2).flatten(2), part.outward, part.outward_bias[0])
    return replace(band, rows=band.rows + write)
