"""Experts that are made louder or softer: by themselves for each token, or by a learned number."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from nestor.ops import grouped
from nestor.types import Experts


@final
class Gated(Experts):
    """Other experts' answers times sigmoid(g_e x): as shared experts of a mixture, those of Qwen-MoE.

    Args:
        experts: who answers.
        width: D.
    """

    def __init__(self, experts: Experts, width: int):
        super().__init__()
        self.experts = experts
        self.gate = nn.Parameter(torch.zeros(len(experts.costs), 1, width))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        return grouped.linear(rows, counts, self.gate).sigmoid() * self.experts(rows, counts)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return tuple(cost + self.gate.shape[-1] for cost in self.experts.costs)


@final
class Scaled(Experts):
    """Other experts' answers times a learned number for each, 0 at first: a part that does nothing until it is wanted.

    Args:
        experts: who answers.
        start: the number at first.
    """

    def __init__(self, experts: Experts, start: float = 0.0):
        super().__init__()
        self.experts = experts
        self.scale = nn.Parameter(torch.full((len(experts.costs), 1), start))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        answer = self.experts(rows, counts)
        return answer * self.scale.to(answer.dtype).repeat_interleave(counts, 0, output_size=len(rows))

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert: none more than before."""
        return self.experts.costs
