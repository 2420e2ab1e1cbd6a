"""Tokens that offer themselves to a few experts, of which the experts choose, and gates that only learn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch

from nestor.routing.adjust import Adjustment, Proposal
from nestor.types import NOBODY, Sparse

if TYPE_CHECKING:
    from nestor.types import Signal


@final
class Marks(Adjustment):
    """A token may only be chosen by the k experts that it prefers; before `expert_choice`, both sides must agree (UoE).

    Raises:
        ValueError: when k is below one; and when called, if it exceeds the number of experts.
    """

    def __init__(self, k: int):
        super().__init__()
        if k < 1:
            raise ValueError(f"a token must mark at least one expert; got {k}.")
        self.k = k

    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""
        wish = proposal.preference.detach()
        if self.k > wish.shape[-1]:
            raise ValueError(f"a token can mark at most all {wish.shape[-1]} experts; got {self.k}.")
        best = wish.sort(dim=-1, descending=True, stable=True).indices[..., : self.k]
        marked = torch.zeros_like(wish, dtype=torch.bool).scatter(-1, best, True)
        return replace(proposal, preference=proposal.preference.masked_fill(~marked, -torch.inf))


def relative(routing: Sparse) -> Sparse:
    """Weight one on the way forward, the gradient of the weight's logarithm on the way back (g / g.detach())."""
    one = (routing.index != NOBODY).to(routing.weight.dtype)
    fixed = routing.weight.detach()
    return replace(routing, weight=one + (routing.weight - fixed) / fixed.abs().clamp_min(1e-20))
