"""Adjustments: what happens to scores between the score and the choice, in the order in which they are listed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from nestor.types import Signal


@dataclass(frozen=True, eq=False)
class Proposal:
    """A decision in the making.

    `scores` (B, T, E) become weights; `preference` (B, T, E) decides who is chosen, -inf excludes; `noisy` (B, T, E)
    are the logits after noise.
    """

    scores: Tensor
    preference: Tensor
    noisy: Tensor


class Adjustment(nn.Module, ABC):
    """Changes a proposal."""

    @abstractmethod
    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""


@final
class Noise(Adjustment):
    """While training, adds normal noise to the logits (V-MoE takes a deviation of 1 / E); stands before the gate.

    Raises:
        ValueError: when the deviation is not positive.
    """

    def __init__(self, deviation: float):
        super().__init__()
        if not deviation > 0:
            raise ValueError(f"the noise's deviation must be positive; got {deviation}. Leave the adjustment out.")
        self.deviation = deviation

    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""
        if not self.training:
            return proposal
        noisy = proposal.scores + self.deviation * torch.randn_like(proposal.scores)
        return Proposal(scores=noisy, preference=noisy, noisy=noisy)


@final
class Softmax(Adjustment):
    """The gate of most mixtures: logits become probabilities over the experts."""

    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""
        scores = proposal.scores.softmax(-1)
        return replace(proposal, scores=scores, preference=scores)


@final
class Sigmoid(Adjustment):
    """The gate of experts that do not compete: each logit becomes a probability of its own."""

    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""
        scores = proposal.scores.sigmoid()
        return replace(proposal, scores=scores, preference=scores)


@final
class Bias(Adjustment):
    """A number for each expert that changes who is chosen, but not the weight: balance without a loss.

    It is a buffer, not a parameter; move it after each step: `adjustment.bias.copy_(balance(adjustment.bias, counts))`.
    """

    bias: Tensor

    def __init__(self, experts: int):
        super().__init__()
        self.register_buffer("bias", torch.zeros(experts))

    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""
        return replace(proposal, preference=proposal.preference + self.bias.float())


def balance(bias: Tensor, counts: Tensor, rate: float = 1e-3) -> Tensor:
    """A new bias: `rate` up for every expert with fewer tokens than the mean, `rate` down for every one with more.

    Args:
        bias: (E,).
        counts: (E,), tokens of each expert, summed over all that saw this bias.
        rate: the size of a step, in the unit of the gated scores.
    """
    load = counts.to(bias.dtype)
    return bias + rate * (load.mean() - load).sign()


@final
class GroupLimit(Adjustment):
    """A token may only choose from its `keep` best groups of experts; a group is as good as the sum of its `best` best.

    Args:
        groups: how many groups of neighbouring experts there are.
        keep: groups that remain.
        best: experts that speak for a group.

    Raises:
        ValueError: when fewer than one or more than all groups are to be kept, or nobody speaks for a group; and when
            called, if the groups do not divide the experts.
    """

    def __init__(self, *, groups: int, keep: int, best: int = 2):
        super().__init__()
        if not 1 <= keep <= groups or best < 1:
            raise ValueError(
                f"keep must lie in [1, {groups}] and best be at least 1; got keep {keep} and best {best}. "
                "Keep fewer groups or make more."
            )
        self.groups, self.keep, self.best = groups, keep, best

    def forward(self, proposal: Proposal, signal: Signal) -> Proposal:
        """Return the changed proposal."""
        grouped = by_group(proposal.preference, self.groups)
        ordered = grouped.sort(dim=-1, descending=True).values
        worth = ordered[..., : self.best].sum(-1)
        kept = worth.sort(dim=-1, descending=True, stable=True).indices[..., : self.keep]
        allowed = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, kept, True)
        limited = grouped.masked_fill(~allowed.unsqueeze(-1), -torch.inf)
        return replace(proposal, preference=limited.flatten(-2))


def by_group(scores: Tensor, groups: int) -> Tensor:
    """(B, T, E) -> (B, T, groups, E / groups).

    Raises:
        ValueError: when the groups do not divide the experts.
    """
    E = scores.shape[-1]
    if groups < 1 or E % groups:
        raise ValueError(f"groups must divide the {E} experts; got {groups}.")
    return scores.unflatten(-1, (groups, E // groups))
