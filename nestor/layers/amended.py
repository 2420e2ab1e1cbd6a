"""A feed-forward network that stays as it is, with routed additions to both of its linear maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.ops import grouped
from nestor.types import Signal

if TYPE_CHECKING:
    from nestor.experts.feedforward import FeedForward
    from nestor.types import Experts, Router, Routing


@final
class Amended(nn.Module):
    """y = (W2 + dW2) act((W1 + dW1) x + b1) + b2, where dW1 and dW2 are weighted sums of what the chosen experts add.

    One decision, made from what the network reads, serves both maps. Experts that answer zero at first, such as
    `Kronecker`, leave the network as it was.

    Args:
        one: a single feed-forward network; its weights no longer learn.
        router: sparse or soft, over as many experts as either addition has.
        inward: from the width to the hidden units (times the activation's fan).
        outward: from the hidden units to the width.

    Raises:
        ValueError: when there are several networks, or the additions differ in number.
    """

    def __init__(self, one: FeedForward, router: Router, inward: Experts, outward: Experts):
        super().__init__()
        if len(one.costs) != 1 or len(inward.costs) != len(outward.costs):
            raise ValueError(
                f"one network and as many additions to either map are needed; got {len(one.costs)}, "
                f"{len(inward.costs)} and {len(outward.costs)}."
            )
        self.one, self.router = one.requires_grad_(False), router
        self.inward, self.outward = inward, outward

    def forward(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D') and the decision taken; a masked token gets zero.

        Raises:
            ValueError: when router and experts do not agree on E.
        """
        signal = Signal() if signal is None else signal
        if signal.mask is not None:
            tokens = tokens.masked_fill(~signal.mask.unsqueeze(-1), 0)
        routing, one = self.router(tokens, signal), self.one
        if len(routing.counts) != len(self.inward.costs):
            raise ValueError(
                f"router and experts must agree; the router decides over {len(routing.counts)} experts and there are "
                f"{len(self.inward.costs)}. Build both with the same number."
            )
        hidden = one.activation.apply(_map(tokens, routing, self.inward, one.inward, one.inward_bias))
        answer = _map(hidden, routing, self.outward, one.outward, one.outward_bias)
        return answer if signal.mask is None else answer.masked_fill(~signal.mask.unsqueeze(-1), 0), (routing,)

    def macs(self, routing: Routing, shape: tuple[int, int, int]) -> int:
        """Multiply-accumulates of the router, the network, and the additions that were chosen.

        Args:
            routing: as returned.
            shape: (B, T, D) of the tokens.
        """
        B, T, _ = shape
        each = [a + b for a, b in zip(self.inward.costs, self.outward.costs, strict=True)]
        added = sum(n * cost for n, cost in zip(routing.counts.tolist(), each, strict=True))
        return B * self.router.macs(T) + B * T * self.one.costs[0] + added


def _map(tokens: Tensor, routing: Routing, more: Experts, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = tokens.flatten(0, 1)
    plain = grouped.linear(rows, torch.tensor([len(rows)], device=rows.device), weight, bias)
    return plain.unflatten(0, tokens.shape[:2]) + routing.combine(more(routing.dispatch(tokens), routing.counts))
