"""Attention that hears nothing of what comes later."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.ops.lists import gather

if TYPE_CHECKING:
    from nestor.layers.heads import SeparateHeads
    from nestor.types import Routing, Signal

# What a key gets that must not be heard; finite, so that a place that hears nothing has an answer too.
_NEVER = -1e9


@final
class Causal(nn.Module):
    """Each head is attention of a token to those before it and itself, among the tokens that chose the head (UoE).

    With all heads chosen and weights one it is plain causal self-attention. Nothing tells the future only if the router
    asks each token alone, as `top_k` does, and none that compares the tokens of an item.

    Args:
        heads: their weights and their router.
    """

    def __init__(self, heads: SeparateHeads):
        super().__init__()
        self.heads = heads

    def forward(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D) and the decision taken.

        Raises:
            ValueError: when the decision is soft, or over another number of heads.
        """
        own = self.heads
        routing, place, real, weight, signal = own.ask(tokens, signal)
        if signal.mask is not None:
            tokens = tokens.masked_fill(~signal.mask.unsqueeze(-1), 0)
        rows = gather(tokens, place)
        query, key, value = (own.part(which, rows) for which in range(3))
        heard = (place.unsqueeze(-1) >= place.unsqueeze(-2)) & real.unsqueeze(-2)
        never = torch.zeros_like(heard, dtype=query.dtype).masked_fill(~heard, _NEVER)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=never)
        return own.tell(mixed, weight, place, tokens, signal.mask), (routing,)

    def macs(self, routing: Routing, shape: tuple[int, int, int]) -> int:
        """Multiply-accumulates as without a future that is kept back, since all pairs of a list are compared.

        Args:
            routing: as returned, sparse.
            shape: (B, T, D) of the tokens.
        """
        return self.heads.macs(routing, shape)
