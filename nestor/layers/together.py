"""Several layers in the place of one, and what any of them costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

import torch
from torch import Tensor, nn

from nestor.layers.block import Dense
from nestor.types import NOBODY, Signal, Sparse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from nestor.experts.lowrank import Bottleneck
    from nestor.types import Router, Routing


class Layer(Protocol):
    """What may stand in the place of a feed-forward part: `Dense`, `Mixture`, and those of this file and beside it."""

    def __call__(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D') and the decisions taken."""
        ...


@final
class Together(nn.Module):
    """Several layers read the same tokens, and their answers are added.

    Raises:
        ValueError: when there is no layer.
    """

    def __init__(self, parts: Sequence[Layer]):
        super().__init__()
        if not parts:
            raise ValueError("there must be layers whose answers are added; got none.")
        self.parts: Any = nn.ModuleList(parts)  # pyright: ignore[reportArgumentType]

    def forward(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D') and the decisions of all parts."""
        found = [part(tokens, signal) for part in self.parts]
        return torch.stack([answer for answer, _ in found]).sum(0), sum((routings for _, routings in found), ())


@final
class Blended(nn.Module):
    """Adapters whose weights are mixed for each item before they answer, so that many answer at the price of one.

    Args:
        experts: the adapters.
        router: one decision for all tokens of an item, over these adapters (`routing.given.Pooled`).
    """

    def __init__(self, experts: Bottleneck, router: Router):
        super().__init__()
        self.experts, self.router = experts, router

    def forward(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D) and the decision taken; a masked token gets zero.

        Raises:
            ValueError: when the decision is soft, or over another number of experts.
        """
        own, signal = self.experts, Signal() if signal is None else signal
        gone = None if signal.mask is None else ~signal.mask.unsqueeze(-1)
        tokens = tokens if gone is None else tokens.masked_fill(gone, 0)
        routing = self.router(tokens, signal)
        if not isinstance(routing, Sparse) or routing.scores.shape[-1] != len(own.down):
            raise ValueError(
                f"blending needs a sparse decision over {len(own.down)} experts; got {type(routing).__name__} over "
                f"{routing.scores.shape[-1]}. Build both with the same number."
            )
        # All tokens of an item that count say the same, and the others say nothing.
        weight = dense(routing)
        # Of no tokens there is no greatest weight.
        gate = (weight.amax(1) if weight.shape[1] else weight.sum(1)).to(tokens.dtype)
        down, up = (torch.einsum("be,eod->bdo", gate, part) for part in (own.down, own.up))
        down_bias, up_bias = ((gate @ part).unsqueeze(1) for part in (own.down_bias, own.up_bias))
        hidden = own.activation.apply(torch.baddbmm(down_bias, tokens, down))
        answer = own.scale * torch.baddbmm(up_bias, hidden, up)
        return answer if gone is None else answer.masked_fill(gone, 0), (routing,)

    def macs(self, routing: Routing, shape: tuple[int, int, int]) -> int:
        """Multiply-accumulates of the router, of mixing the weights for each item, and of one adapter for each token.

        Args:
            routing: as returned.
            shape: (B, T, D) of the tokens.
        """
        B, T, _ = shape
        return B * (self.router.macs(T) + sum(self.experts.costs) + T * self.experts.costs[0])


def dense(routing: Sparse) -> Tensor:
    """(B, T, E): the weight of every expert, zero where it was not chosen."""
    weight = routing.weight.masked_fill(routing.index == NOBODY, 0)
    return torch.zeros_like(routing.scores, dtype=weight.dtype).scatter_add(-1, routing.index.clamp_min(0), weight)


def spent(layer: Any, left: Iterator[Routing], shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of a layer on tokens of this shape (B, T, D); its decisions are the next of those left."""
    if isinstance(layer, Together):
        return sum(spent(part, left, shape) for part in layer.parts)
    if isinstance(layer, Dense):
        return shape[0] * layer.macs(shape[1])
    return layer.macs(next(left), shape)
