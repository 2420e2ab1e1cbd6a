"""What is left of a feed-forward part's answer when some of its experts answer alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.types import Signal, Sparse

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.layers.mixture import Mixture
    from nestor.models.composed import Composed


@torch.no_grad()
def heard(model: Composed, place: int, images: Tensor) -> Tensor:
    """(B, T, D): what the feed-forward part of the block of this number reads; the blocks before take no decision.

    Raises:
        ValueError: when there is no such block.
    """
    if not 0 <= place < len(model.chain):
        raise ValueError(f"blocks are numbered from 0 to {len(model.chain) - 1}; got {place}.")
    tokens = model.embed(images)
    for block in model.chain[:place]:
        tokens, _ = block(tokens, Signal())
    block = model.chain[place]
    return block.norm2(tokens + block.attention(block.norm1(tokens)))


@torch.no_grad()
def answers(layer: Mixture, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the chosen experts answer to tokens (B, T, D), and what as many others do that chance chooses.

    Args:
        layer: with a sparse router.
        tokens: what is answered.
    """
    _, (routing,) = layer(tokens)
    assert isinstance(routing, Sparse)
    experts = len(layer.experts.costs)
    turn = torch.randint(1, experts, (*routing.index.shape[:2], 1))
    chance = Sparse(routing.scores, (routing.index + turn) % experts, routing.weight)
    return layer.answer(tokens, routing), layer.answer(tokens, chance)
