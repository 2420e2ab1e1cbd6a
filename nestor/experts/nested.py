"""Nested experts: each is a prefix of the same feed-forward network."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.experts.feedforward import GELU, Activation, uniform
from nestor.types import Experts

if TYPE_CHECKING:
    from collections.abc import Sequence


@final
class Nested(Experts):
    """Expert j reads and writes the first widths[j] channels and uses the first hidden[j] units.

    What it does not write is zero. Biases are each expert's own, because what is left out is best made up for by a
    constant. Width 0 is a skip.

    Args:
        widths: channels of each expert, rising; the last is D.
        hidden: units of each expert, not falling.
        activation: as with `FeedForward`.

    Raises:
        ValueError: when widths do not rise, hidden fall, or they differ in number.
    """

    def __init__(self, widths: Sequence[int], hidden: Sequence[int], *, activation: Activation = GELU):
        super().__init__()
        self.widths, self.hidden, self.activation = tuple(widths), tuple(hidden), activation
        if (
            not self.widths
            or len(self.widths) != len(self.hidden)
            or min(self.widths) < 0
            or any(b <= a for a, b in pairwise(self.widths))
            or any(b < a for a, b in pairwise(self.hidden))
            or any(h < 1 for d, h in zip(self.widths, self.hidden, strict=True) if d)
        ):
            raise ValueError(
                "widths must rise and hidden units not fall, one of each for every expert, and at least one unit where "
                f"the width is not 0; got {self.widths} and {self.hidden}. Sort the experts from narrow to wide."
            )
        E, D, H = len(self.widths), self.widths[-1], self.hidden[-1]
        self.inward = nn.Parameter(uniform(activation.fan, H, D))
        self.inward_bias = nn.Parameter(torch.zeros(E, activation.fan, H))
        self.outward = nn.Parameter(uniform(D, H))
        self.outward_bias = nn.Parameter(torch.zeros(E, D))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D)."""
        parts = rows.split(counts.tolist())
        # Experts are few and of different shapes, so each is visited, also those without rows: their gradient is zero.
        return torch.cat([self._answer(j, part) for j, part in enumerate(parts)])

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return tuple((self.activation.fan + 1) * d * h for d, h in zip(self.widths, self.hidden, strict=True))

    def _answer(self, expert: int, part: Tensor) -> Tensor:
        d, h = self.widths[expert], self.hidden[expert]
        inward, bias = self.inward[:, :h, :d].flatten(0, 1), self.inward_bias[expert, :, :h].flatten()
        act = self.activation.apply(F.linear(part[:, :d], inward, bias))
        write = F.linear(act, self.outward[:d, :h], self.outward_bias[expert, :d])
        return F.pad(write, (0, self.widths[-1] - d))
