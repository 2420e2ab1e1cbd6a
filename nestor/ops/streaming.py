"""Softmax and attention that read their input once, as hardware does that cannot hold a matrix of scores.

Keys come one after the other, and what is kept of them has the size of one. The numbers are those of the plain way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def softmax_in_one_pass(scores: Tensor) -> Tensor:
    """Softmax of the last dimension (..., n), whose largest value and sum are known after reading it once.

    A running bias b and a sum s of exp(a - b): a larger score becomes the bias and shrinks the sum.

    Raises:
        ValueError: when there is no score.
    """
    bias, total = _summed(scores)
    return (scores - bias.unsqueeze(-1)).exp() / total.unsqueeze(-1)


def attend_in_one_pass(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(e)) v in two streams, of keys and of values: the first leaves scores, a bias and a sum.

    Without a key the answer is zero.

    Args:
        query: (B, heads, n, e).
        key, value: (B, heads, m, e).

    Returns:
        (B, heads, n, e).
    """
    if not key.shape[-2]:
        return torch.zeros_like(query)
    scale = query.shape[-1] ** -0.5
    scores = torch.stack([scale * (query * each.unsqueeze(-2)).sum(-1) for each in key.unbind(-2)], -1)
    bias, total = _summed(scores)
    answer = torch.zeros_like(query)
    for score, each in zip(scores.unbind(-1), value.unbind(-2), strict=True):
        answer = answer + ((score - bias).exp() / total).unsqueeze(-1) * each.unsqueeze(-2)
    return answer


def attend_fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same in one stage after the other: scores and their largest; exponentials, times values, divided at the end.

    Args:
        query: (B, heads, n, e).
        key, value: (B, heads, m, e).

    Returns:
        (B, heads, n, e).
    """
    scale = query.shape[-1] ** -0.5
    scores = [scale * (query * each.unsqueeze(-2)).sum(-1) for each in key.unbind(-2)]
    largest = scores[0]
    for score in scores[1:]:
        largest = torch.maximum(largest, score)
    total, answer = torch.zeros_like(largest), torch.zeros_like(query)
    for score, each in zip(scores, value.unbind(-2), strict=True):
        weight = (score - largest).exp()
        total = total + weight
        answer = answer + weight.unsqueeze(-1) * each.unsqueeze(-2)
    return answer / total.unsqueeze(-1)


def _summed(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(...) the largest score, and the sum of the exponentials of all differences to it."""
    if not scores.shape[-1]:
        raise ValueError(f"a softmax needs at least one score; got {tuple(scores.shape)}.")
    bias = torch.full_like(scores[..., 0], -torch.inf)
    total = torch.zeros_like(bias)
    for score in scores.unbind(-1):
        larger = score > bias
        step = torch.where(larger, bias - score, score - bias).exp()
        total = torch.where(larger, total * step + 1, total + step)
        bias = torch.where(larger, score, bias)
    return bias, total
