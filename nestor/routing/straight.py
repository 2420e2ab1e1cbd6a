"""A choice that is all or nothing, and learned all the same: straight-through, with Gumbel noise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.ops.noise import gumbel
from nestor.routing.adjust import Adjustment, Proposal, Softmax
from nestor.routing.choose import expert_preferred, top_k
from nestor.routing.refine import hard
from nestor.routing.router import ComposedRouter
from nestor.types import NOBODY, Router, Signal, Sparse

if TYPE_CHECKING:
    from nestor.routing.score import Score


@final
class Gumbel(Adjustment):
    """While training, adds Gumbel noise to the logits and divides them by a temperature; stands before the gate.

    The best of noisy logits is a draw from their softmax, whatever the temperature, which only smooths the gradient.

    Raises:
        ValueError: when the temperature is not positive.
    """

    def __init__(self, temperature: float):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"a temperature must be positive; got {temperature}. 5 is published for skipping tokens.")
        self.temperature = temperature

    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""
        if not self.training:
            return proposal
        noisy = (proposal.scores + gumbel(proposal.scores)) / self.temperature
        return Proposal(scores=noisy, preference=noisy, noisy=noisy)


@final
class PrefixFirst(Adjustment):
    """Tokens before the signal's grid of patches, such as a class token, always go to expert 0; stands after the gate.

    Raises:
        ValueError: when called with a grid of more patches than there are tokens.
    """

    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""
        _, T, E = proposal.scores.shape
        first = 0 if signal.grid is None else T - signal.grid[0] * signal.grid[1]
        if first < 0:
            raise ValueError(f"the grid must fit the tokens; got {signal.grid} for {T} tokens.")
        if not first:
            return proposal
        certain = F.one_hot(torch.zeros((), dtype=torch.long, device=proposal.scores.device), E).to(proposal.scores)
        before = (torch.arange(T, device=certain.device) < first).unsqueeze(-1)
        scores, preference = (torch.where(before, certain, part) for part in (proposal.scores, proposal.preference))
        return replace(proposal, scores=scores, preference=preference)


@final
class StraightThrough(Router):
    """One expert for each token, with weight one; while training the others answer too, with weight zero.

    So every token's gradient tells the router whether another choice would have been better: backwards, weights are the
    softmax that they were drawn from. Beside an expert that answers zero, this is skipping tokens (DyT). Tokens before
    the grid of patches always go to expert 0. Where the signal has counts, every expert gets exactly so many tokens.

    Args:
        score: what is thought of each token and expert.
        temperature: of the Gumbel noise.
    """

    def __init__(self, score: Score, *, temperature: float = 1.0):
        super().__init__()
        self.free = ComposedRouter(score, [Gumbel(temperature), Softmax(), PrefixFirst()], partial(top_k, k=1))

    def forward(self, tokens: Tensor, signal: Signal) -> Sparse:
        """(B, T, D) -> a decision with K = E while training, else K = 1."""
        one = self.free(tokens, signal)
        assert isinstance(one, Sparse)
        if signal.counts is not None:
            exact = expert_preferred(one.scores, signal.counts, signal.mask)
            return hard(replace(one, index=exact.index, weight=exact.weight))
        if not self.training:
            return hard(one)
        E = one.scores.shape[-1]
        every = torch.arange(E, device=tokens.device).expand_as(one.scores)
        served = one.index != NOBODY
        best = F.one_hot(one.index[..., 0].clamp_min(0), E).to(one.scores.dtype)
        weight = (best + (one.scores - one.scores.detach())).masked_fill(~served, 0)
        return replace(one, index=every.masked_fill(~served, NOBODY), weight=weight)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one decision over this many tokens."""
        return self.free.macs(tokens)
