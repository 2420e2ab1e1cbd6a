"""What happens to a choice after it was made: weights are scaled, and what exceeds a capacity is dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestor.routing.capacity import per_expert
from nestor.types import NOBODY, Origin, Sparse

if TYPE_CHECKING:
    from collections.abc import Callable


def renormalise(routing: Sparse, *, scale: float = 1.0) -> Sparse:
    """Weights of each token add up to `scale`; those of a token that nobody serves stay zero."""
    total = routing.weight.sum(-1, keepdim=True).clamp_min(1e-20)
    return replace(routing, weight=routing.weight * (scale / total))


def unweighted(routing: Sparse) -> Sparse:
    """Every chosen expert answers with weight one."""
    return replace(routing, weight=(routing.index != NOBODY).to(routing.weight.dtype))


def hard(routing: Sparse) -> Sparse:
    """Weight one on the way forward, the gradient of the weight on the way back (straight-through)."""
    one = (routing.index != NOBODY).to(routing.weight.dtype)
    return replace(routing, weight=one + (routing.weight - routing.weight.detach()))


def first_come(routing: Sparse) -> Tensor:
    """(B, T): tokens in the order in which they stand."""
    B, T, _ = routing.index.shape
    return torch.arange(T, device=routing.index.device).expand(B, T)


def heaviest_first(routing: Sparse) -> Tensor:
    """(B, T): tokens by their greatest weight, so that what is dropped is what mattered least (batch priority)."""
    return routing.weight.detach().amax(-1).sort(dim=-1, descending=True, stable=True).indices


def drop(
    routing: Sparse,
    *,
    factor: float | None = None,
    capacity: int | None = None,
    order: Callable[[Sparse], Tensor] = first_come,
) -> Sparse:
    """No expert serves more tokens of an item than its capacity; the others become nobody's, with weight zero.

    All first choices come before all second ones; among equals `order` decides. Masked tokens count for nothing.

    Args:
        routing: the decision.
        factor: capacity as a multiple of an even share of the item's choices (see `per_expert`), or else
        capacity: tokens of one item for each expert.
        order: (B, T) tokens of each item, first served first.

    Raises:
        ValueError: when not exactly one of factor and capacity is given, or it is not positive.
    """
    B, T, K = routing.index.shape
    E = routing.scores.shape[-1]
    if (factor is None) == (capacity is None):
        raise ValueError(f"give a factor or a capacity; got factor {factor} and capacity {capacity}.")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity must be at least one token; got {capacity}. Remove experts that shall not work.")
    counting = _counting(routing)
    room = torch.full_like(counting, capacity or 0) if factor is None else per_expert(counting, E, factor, K)
    tokens = order(routing).unsqueeze(1).expand(B, K, T)
    queue = routing.index.mT.gather(2, tokens).flatten(1)
    kept = _first(queue, E, room.unsqueeze(1)).unflatten(1, (K, T))
    kept = torch.zeros_like(kept).scatter(2, tokens, kept).mT
    return replace(routing, index=routing.index.masked_fill(~kept, NOBODY), weight=routing.weight.masked_fill(~kept, 0))


def drop_in_batch(
    routing: Sparse,
    *,
    factor: float | None = None,
    capacity: int | None = None,
    order: Callable[[Sparse], Tensor] = first_come,
) -> Sparse:
    """The same as `drop`, with the tokens of all items in one queue: the capacity is that of the batch."""
    B, T, _ = routing.index.shape
    scores, index, weight = (_in_one(part) for part in (routing.scores, routing.index, routing.weight))
    joined = Sparse(scores, index, weight, routing.origin and _joined(routing.origin))
    left = drop(joined, factor=factor, capacity=capacity, order=order)
    return replace(routing, index=left.index[0].unflatten(0, (B, T)), weight=left.weight[0].unflatten(0, (B, T)))


def _in_one(part: Tensor) -> Tensor:
    """(B, T, ...) -> (1, B * T, ...)."""
    return part.flatten(0, 1).unsqueeze(0)


def _joined(origin: Origin) -> Origin:
    mask = None if origin.mask is None else _in_one(origin.mask)
    return Origin(_in_one(origin.logits), _in_one(origin.noisy), _in_one(origin.wanted), mask)


def _counting(routing: Sparse) -> Tensor:
    """(B,): how many tokens of each item count."""
    B, T, _ = routing.index.shape
    mask = None if routing.origin is None else routing.origin.mask
    return torch.full((B,), T, device=routing.index.device) if mask is None else mask.sum(1)


def _first(queue: Tensor, experts: int, room: Tensor) -> Tensor:
    """(B, N) experts in order of arrival -> (B, N): whether each is among the first `room` (B, 1) of its expert."""
    named = queue.masked_fill(queue == NOBODY, experts)
    together, order = named.sort(dim=1, stable=True)
    start = torch.searchsorted(together, together, side="left")
    place = torch.arange(queue.shape[1], device=queue.device) - start
    kept = (place < room) & (together != experts)
    return torch.zeros_like(kept).scatter(1, order, kept)
