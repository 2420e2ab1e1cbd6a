"""Experts that are one network for the most part and differ in some channels of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.experts.feedforward import GELU, Activation, uniform
from nestor.ops import grouped
from nestor.types import Experts

if TYPE_CHECKING:
    from nestor.experts.feedforward import FeedForward


@final
class PartlyShared(Experts):
    """h = act(W1 x + b1) for all; the answer's first channels are shared, its last `own` are each expert's.

    Args:
        width: D.
        hidden: units, all shared.
        experts: E.
        own: channels of the answer that an expert computes itself.
        activation: as with `FeedForward`.

    Raises:
        ValueError: when own does not lie in [1, D).
    """

    def __init__(self, width: int, hidden: int, experts: int, *, own: int, activation: Activation = GELU):
        super().__init__()
        if not 1 <= own < width:
            raise ValueError(f"own must lie in [1, {width}); got {own}. With all of them take FeedForward.")
        self.activation = activation
        self.inward = nn.Parameter(uniform(activation.fan * hidden, width))
        self.inward_bias = nn.Parameter(torch.zeros(activation.fan * hidden))
        self.outward = nn.Parameter(uniform(width - own, hidden))
        self.outward_bias = nn.Parameter(torch.zeros(width - own))
        self.own = nn.Parameter(uniform(experts, own, hidden))
        self.own_bias = nn.Parameter(torch.zeros(experts, own))

    @classmethod
    def of(cls, dense: FeedForward, experts: int, *, own: int) -> PartlyShared:
        """A network in this form, all experts alike: whichever is chosen, the answer is the network's.

        Raises:
            ValueError: when there is not one network with biases, as wide behind as in front.
        """
        E, D, H = dense.outward.shape
        if E != 1 or dense.inward.shape[-1] != D or dense.inward_bias is None or dense.outward_bias is None:
            raise ValueError(
                f"only one network with biases, as wide behind as in front, can be split; got {E} of {D} channels. "
                "Select one expert first."
            )
        made = cls(D, H, experts, own=own, activation=dense.activation)
        with torch.no_grad():
            made.inward.copy_(dense.inward[0])
            made.inward_bias.copy_(dense.inward_bias[0])
            made.outward.copy_(dense.outward[0, : D - own])
            made.outward_bias.copy_(dense.outward_bias[0, : D - own])
            made.own.copy_(dense.outward[:, D - own :].expand(experts, -1, -1))
            made.own_bias.copy_(dense.outward_bias[:, D - own :].expand(experts, -1))
        return made

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D)."""
        hidden = self.activation.apply(F.linear(rows, self.inward, self.inward_bias))
        mine = grouped.linear(hidden, counts, self.own, self.own_bias)
        return torch.cat([F.linear(hidden, self.outward, self.outward_bias), mine], -1)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return (self.inward.numel() + self.outward.numel() + self.own[0].numel(),) * len(self.own)
