"""Routers that learn nothing: a decision made before, and chance."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.types import NOBODY, Router, Routing, Signal, Soft, Sparse


@final
class Again(Router):
    """The decision that was made before: `Signal.routing`, for instance that of an earlier layer.

    What is masked now is served by nobody, though it may have been before.
    """

    def forward(self, tokens: Tensor, signal: Signal) -> Routing:
        """(B, T, D) -> the signal's routing.

        Raises:
            ValueError: when the signal has none, or one about other tokens.
        """
        routing = signal.routing
        if routing is None:
            raise ValueError("a decision can be repeated only with Signal(routing=...); got None. Decide earlier.")
        if routing.scores.shape[:2] != tokens.shape[:2]:
            raise ValueError(
                f"a decision can be repeated only about as many tokens, {tuple(tokens.shape[:2])}; got one about "
                f"{tuple(routing.scores.shape[:2])}. Decide again."
            )
        return routing if signal.mask is None else _without(routing, ~signal.mask)

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
        """(B, T, D) -> a decision with K = 1 that owes nothing to the tokens; masked ones are not dealt out."""
        B, T, _ = tokens.shape
        order = torch.randperm(B * T, device=tokens.device)
        if signal.mask is not None:
            # Those that count get the first places, in the order in which they were drawn.
            order = (order + B * T * ~signal.mask.flatten()).argsort().argsort()
        index = (order % self.experts).view(B, T, 1)
        scores = F.one_hot(index[..., 0], self.experts).float()
        dealt = Sparse(scores, index, torch.ones(B, T, 1, device=tokens.device))
        return dealt if signal.mask is None else _sparse_without(dealt, ~signal.mask)

    def macs(self, tokens: int) -> int:
        """None."""
        return 0


def _without(routing: Routing, gone: Tensor) -> Routing:
    """The same decision, but that nobody serves these tokens (B, T)."""
    if isinstance(routing, Sparse):
        return _sparse_without(routing, gone)
    if isinstance(routing, Soft):
        give = routing.give.masked_fill(gone[:, None, None], 0)
        return replace(routing, give=give, take=routing.take.masked_fill(gone[..., None, None], 0))
    raise ValueError(f"only sparse and soft decisions know padding; got {type(routing).__name__}. Leave the mask out.")


def _sparse_without(routing: Sparse, gone: Tensor) -> Sparse:
    each = gone.unsqueeze(-1)
    return replace(routing, index=routing.index.masked_fill(each, NOBODY), weight=routing.weight.masked_fill(each, 0))
