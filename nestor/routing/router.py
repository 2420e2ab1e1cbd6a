"""Routers: a score and a choice put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from nestor.routing.choose import expert_preferred
from nestor.types import Router, Signal, Sparse

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.routing.score import Score


@final
class ExpertPreferredRouter(Router):
    """Softmax over the experts, then expert preferred routing with the signal's counts (MoNE, section 3.2).

    Raises:
        ValueError: when the signal has no counts.
    """

    def __init__(self, score: Score):
        super().__init__()
        self.score = score

    def forward(self, tokens: Tensor, signal: Signal) -> Sparse:
        """(B, T, D) -> a decision with K = 1 whose weights are the probabilities of the chosen experts."""
        if signal.counts is None:
            raise ValueError("expert preferred routing needs Signal(counts=...); got None.")
        scores = self.score(tokens, signal).float().softmax(-1)
        return expert_preferred(scores, signal.counts)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one decision over this many tokens."""
        return self.score.macs(tokens)
