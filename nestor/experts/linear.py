"""One linear map for each expert."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from nestor.experts.feedforward import uniform
from nestor.ops import grouped
from nestor.types import Experts


@final
class Linear(Experts):
    """y = W_e x, without bias: for instance the queries or the outputs of heads that are experts.

    Args:
        width: D.
        experts: E.
        out: D', D unless given.
    """

    def __init__(self, width: int, experts: int, *, out: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(uniform(experts, width if out is None else out, width))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        return grouped.linear(rows, counts, self.weight)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return (self.weight[0].numel(),) * len(self.weight)
