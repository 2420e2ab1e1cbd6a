"""Gates that are never zero."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, final

from nestor.routing.adjust import Adjustment, Proposal

if TYPE_CHECKING:
    from nestor.types import Signal


@final
class Raised(Adjustment):
    """Adds a small number to every gated score, so that a logarithm of it stays finite; stands behind the gate.

    Args:
        amount: what is added; the order of preference stays as it is.

    Raises:
        ValueError: when the amount is not positive.
    """

    def __init__(self, amount: float = 1e-4):
        super().__init__()
        if not amount > 0:
            raise ValueError(f"the amount must be positive; got {amount}. Leave the adjustment out.")
        self.amount = amount

    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""
        return replace(proposal, scores=proposal.scores + self.amount)
