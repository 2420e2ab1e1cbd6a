"""Scaled dot-product attention by whichever way is fastest here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

# Up to so many queries or keys the whole matrix of scores is the cheaper way to train in reduced precision.
_SCORES = 1024
# torch's flash attention in bfloat16 on a CPU is slow where the keys are not a multiple of this.
_TILE = 16


def attend(query: Tensor, key: Tensor, value: Tensor, size: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(e) + log size) v for each item and head.

    On a CPU the backward pass of torch's flash attention in bfloat16 takes two to six times as long as that of plain
    matmuls, so that the latter are used where a gradient is wanted. Where none is, keys that nobody sees are added
    until there are as many as its products like, which is much faster.

    Args:
        query: (B, heads, n, e).
        key, value: (B, heads, m, e).
        size: (B, m, 1), how often each key counts; once when None.

    Returns:
        (B, heads, n, e).
    """
    if _trained_on_cpu(query, key, value) and max(query.shape[2], key.shape[2]) <= _SCORES:
        return by_matmul(query, key, value, size)
    bias = None if size is None else _bias(size, query.dtype)
    if (spare := -key.shape[2] % _TILE) and key.shape[2] > _TILE and _reduced_on_cpu(query, key, value):
        seen = query.new_zeros(1, 1, 1, key.shape[2]) if bias is None else bias
        bias = F.pad(seen, (0, spare), value=float("-inf"))
        key, value = (F.pad(part, (0, 0, 0, spare)) for part in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def by_matmul(query: Tensor, key: Tensor, value: Tensor, size: Tensor | None = None) -> Tensor:
    """The same with the matrix of scores (B, heads, n, m) in memory."""
    rows, columns, values = (part.flatten(0, 1) for part in (query, key, value))
    bias = rows.new_zeros(1, 1, 1)
    if size is not None:
        bias = _bias(size, query.dtype).expand(-1, query.shape[1], -1, -1).flatten(0, 1)
    scores = torch.baddbmm(
        bias, rows, columns.transpose(1, 2), beta=0 if size is None else 1, alpha=query.shape[-1] ** -0.5
    )
    return torch.bmm(scores.softmax(-1), values).unflatten(0, query.shape[:2])


def mixed(parts: Sequence[Tensor], width: int, each: int, size: Tensor | None = None) -> tuple[Tensor, ...]:
    """What the tokens of several bands see in one another, before it is written.

    Args:
        parts: keys, values and queries of each band side by side, (B, n, 2D + heads of the expert x e).
        width: D.
        each: e, of a head.
        size: (B, m, 1), how often each key counts, m being the tokens of all bands; once when None.

    Returns:
        (B, n, heads of the expert x e) of each band.
    """
    joined = torch.cat([part[..., : 2 * width] for part in parts], 1)
    key, value = (half.unflatten(-1, (-1, each)).transpose(1, 2) for half in joined.split(width, -1))
    queries = [part[..., 2 * width :] for part in parts]
    if len({query.shape[-1] for query in queries}) == 1:
        # One call for all queries is faster than one for each band.
        return _seen(torch.cat(queries, 1), key, value, size).split([part.shape[1] for part in parts], 1)
    return tuple(_seen(query, key, value, size) for query in queries)


def _seen(query: Tensor, key: Tensor, value: Tensor, size: Tensor | None) -> Tensor:
    heads = query.unflatten(-1, (-1, value.shape[-1])).transpose(1, 2)
    n = heads.shape[1]
    return attend(heads, key[:, :n], value[:, :n], size).transpose(1, 2).flatten(2)


def _bias(size: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, m): added to all scores of a key."""
    return size.log().to(dtype).transpose(1, 2).unsqueeze(1)


def _trained_on_cpu(*parts: Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts) and _reduced_on_cpu(*parts)


def _reduced_on_cpu(*parts: Tensor) -> bool:
    return all(part.device.type == "cpu" and part.dtype in (torch.bfloat16, torch.float16) for part in parts)
