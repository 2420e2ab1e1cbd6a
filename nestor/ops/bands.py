"""Tokens sorted by expert once, then kept apart: one contiguous tensor for each expert that has tokens.

A token of width d only ever changes its first d channels, so a band stores only these; all that is needed of the rest
is its squared norm, which is constant. Attention does not mind the order of the tokens, so nothing is gathered or
scattered between the first block and the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.ops.tokens import Merge
    from nestor.types import Sparse


@dataclass(frozen=True, eq=False)
class Band:
    """The tokens of one expert, the same number in every item."""

    expert: int
    rows: Tensor
    """(B, n, d): their first d channels."""
    tail: Tensor
    """(B, n, 1): the squared norm of the channels beyond d, single precision."""
    gate: Tensor | None
    """(B, n, 1): the router's probability of this expert; None where nothing was decided."""
    size: Tensor | None = None
    """(B, n, 1): how many tokens each stands for; None where nothing was merged (nestor.ops.thin)."""
    merge: Merge | None = None
    """What became of the tokens that the band had at first; None where nothing was merged."""


def sort(tokens: Tensor, routing: Sparse | None, counts: Sequence[int], widths: Sequence[int], prefix: int):
    """Cut tokens into bands, the widest first.

    The first `prefix` tokens of each item (class, registers) join the last expert without a gate.

    Args:
        tokens: (B, T, D).
        routing: decision about the T - prefix other tokens; None when all of them take the last expert.
        counts: how many of the other tokens each expert has; fixed, so that every shape is static.
        widths: E channels.
        prefix: how many tokens at the front are not routed.

    Returns:
        The bands, and (B, T) positions: which token stands where in the bands' order.
    """
    B, T, D = tokens.shape
    if routing is None:
        order = torch.arange(T, device=tokens.device).expand(B, T)
        gates = None
    else:
        index = routing.index.squeeze(-1)
        patches = index.argsort(dim=1, descending=True, stable=True)
        front = torch.arange(prefix, device=tokens.device).expand(B, prefix)
        order = torch.cat([front, patches + prefix], 1)
        tokens = tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, D))
        certain = routing.weight.new_zeros(B, prefix, 1)
        gates = torch.cat([certain, routing.weight.gather(1, patches.unsqueeze(-1))], 1)
    bands, start = [], 0
    for expert in reversed(range(len(widths))):
        size = counts[expert] + (prefix if expert == len(widths) - 1 else 0)
        if size == 0:
            continue
        whole, width = tokens[:, start : start + size], widths[expert]
        tail = _tail(whole, width)
        gate = None if gates is None else gates[:, start : start + size]
        bands.append(Band(expert, whole[..., :width].contiguous(), tail, gate))
        start += size
    return tuple(bands), order


def _tail(tokens: Tensor, width: int) -> Tensor:
    # A sum of no channels at all is not zero everywhere: some runtimes that networks are exported to refuse it.
    if width == tokens.shape[-1]:
        return tokens.new_zeros(*tokens.shape[:-1], 1, dtype=torch.float32)
    return tokens[..., width:].float().square().sum(-1, keepdim=True)


def unsort(rows: Sequence[Tensor], order: Tensor) -> Tensor:
    """Put rows of the bands, each (B, n, D), back at their tokens: (B, T, D)."""
    joined = torch.cat(list(rows), 1) if len(rows) > 1 else rows[0]
    return torch.zeros_like(joined).scatter(1, order.unsqueeze(-1).expand_as(joined), joined)


def normalise(rows: Tensor, tail: Tensor, width: int, eps: float) -> Tensor:
    """x / rms(x) over all D channels of each token, of which only the first d are at hand.

    Exact: the channels beyond d never change, so the full norm is the norm of the first d plus a constant.

    Args:
        rows: (B, n, d).
        tail: (B, n, 1), squared norm of the channels beyond d.
        width: D.
        eps: added to the mean square.

    Returns:
        (B, n, d), in the precision of `rows`.
    """
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt((norm.square() + tail) / width + eps)
    return rows * scale.to(rows.dtype)
