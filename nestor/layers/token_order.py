"""A mixture in the order of its tokens, one at a time: what queues of tokens for each expert are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.types import Sparse

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.layers.mixture import Mixture
    from nestor.types import Signal


def token_by_token(layer: Mixture, tokens: Tensor, routing: Sparse) -> Tensor:
    """What the layer answers to a decision, as it does all at once: (B, T, D) -> (B, T, D')."""
    parts = []
    for item, token in torch.cartesian_prod(*map(torch.arange, tokens.shape[:2])).tolist():
        at = (slice(item, item + 1), slice(token, token + 1))
        parts.append(layer.answer(tokens[at], Sparse(routing.scores[at], routing.index[at], routing.weight[at])))
    return torch.cat(parts).view(*tokens.shape[:2], -1)


@torch.no_grad()
def error_of_order(layer: Mixture, tokens: Tensor, signal: Signal) -> float:
    """The largest difference between what a mixture answers expert by expert and token by token.

    Raises:
        ValueError: when it decides softly.
    """
    answer, (routing,) = layer(tokens, signal)
    if not isinstance(routing, Sparse):
        raise ValueError(f"only sparse decisions have an order of tokens; got {type(routing).__name__}.")
    return float((answer - token_by_token(layer, tokens, routing)).abs().max())
