"""Routers that learn nothing: a decision made before, and chance."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.types import Router, Routing, Signal, Sparse


@final
class Again(Router):
    """The decision that was made before: `Signal.routing`, for instance that of an earlier layer."""

    def forward(self, tokens: Tensor, signal: Signal) -> Routing:
        """(B, T, D) -> the signal's routing.

        Raises:
            ValueError: when the signal has none.
        """
        if signal.routing is None:
            raise ValueError("a decision can be repeated only with Signal(routing=...); got None. Decide earlier.")
        return signal.routing

    def macs(self, tokens: int) -> int:
        """None."""
        return 0


@final
class Shuffled(Router):
    """Each call deals all tokens of the batch out anew, as evenly as can be, each to one expert with weight one (EWA).

    Args:
        experts: E.
    """

    def __init__(self, experts: int):
        super().__init__()
        self.experts = experts

    def forward(self, tokens: Tensor, signal: Signal) -> Sparse:
        """(B, T, D) -> a decision with K = 1 that owes nothing to the tokens."""
        B, T, _ = tokens.shape
        order = torch.randperm(B * T, device=tokens.device)
        index = (order % self.experts).view(B, T, 1)
        scores = F.one_hot(index[..., 0], self.experts).float()
        return Sparse(scores, index, torch.ones(B, T, 1, device=tokens.device))

    def macs(self, tokens: int) -> int:
        """None."""
        return 0
