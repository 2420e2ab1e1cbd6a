"""The mixture: a router and its experts as one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.types import Experts, Router, Routing, Signal, Soft

if TYPE_CHECKING:
    from torch import Size


@final
class Mixture(nn.Module):
    """Sends each token to the experts that the router chose and adds up their weighted answers.

    A token that nobody serves gets zero, or the shared experts' answer alone; a masked token always gets zero.

    Compile what does the work, `layer.experts.compile(dynamic=True)`: feed-forward experts then take two graphs, one
    of them for a decision that serves nobody, whatever k, threshold or capacity the router's choice is given from call
    to call. Compiling the whole layer works too, but in pieces, for the number of rows hangs on the tokens, and again
    for every new choice.

    Args:
        router: over as many experts as there are.
        experts: who answers the tokens sent to them.
        shared: experts that answer every token, each with weight one.
    """

    def __init__(self, router: Router, experts: Experts, shared: Experts | None = None):
        super().__init__()
        self.router, self.experts, self.shared = router, experts, shared

    def forward(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D') and the decision taken.

        Raises:
            ValueError: when router and experts do not agree on E.
        """
        signal = Signal() if signal is None else signal
        routing = self.router(_without_padding(tokens, signal.mask), signal)
        return self.answer(tokens, routing, signal.mask), (routing,)

    def answer(self, tokens: Tensor, routing: Routing, mask: Tensor | None = None) -> Tensor:
        """What the experts answer to a decision that was made before: (B, T, D) -> (B, T, D').

        Raises:
            ValueError: when the decision and the experts do not agree on E.
        """
        # Padding may hold anything, and a soft decision multiplies it by zero, which does not make NaN go away.
        tokens = _without_padding(tokens, mask)
        counts = routing.counts
        if len(counts) != len(self.experts.costs):
            raise ValueError(
                f"router and experts must agree; the router decides over {len(counts)} experts and there are "
                f"{len(self.experts.costs)}. Build both with the same number."
            )
        answer = routing.combine(self.experts(routing.dispatch(tokens), counts))
        if self.shared is not None:
            answer = answer + _all_of(self.shared, tokens)
        return _without_padding(answer, mask)

    def macs(self, routing: Routing, shape: Size | tuple[int, int, int]) -> int:
        """Multiply-accumulates that a decision came to: the router, the experts' rows, shared experts, soft mixtures.

        Args:
            routing: as returned.
            shape: (B, T, D) of the tokens.
        """
        B, T, D = shape
        spent = B * self.router.macs(T)
        spent += sum(n * cost for n, cost in zip(routing.counts.tolist(), self.experts.costs, strict=True))
        if self.shared is not None:
            spent += B * T * sum(self.shared.costs)
        if isinstance(routing, Soft):
            spent += (routing.give.numel() + routing.take.numel()) * D
        return spent


def _without_padding(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens if mask is None else tokens.masked_fill(~mask.unsqueeze(-1), 0)


def _all_of(experts: Experts, tokens: Tensor) -> Tensor:
    """(B, T, D) -> (B, T, D'): the sum of all experts' answers to every token."""
    E, R = len(experts.costs), tokens.shape[0] * tokens.shape[1]
    rows = tokens.flatten(0, 1).repeat(E, 1)
    counts = torch.full((E,), R, device=tokens.device)
    return experts(rows, counts).unflatten(0, (E, R)).sum(0).unflatten(0, tokens.shape[:2])
