"""Experts that cost next to nothing: a token that needs no network can go there."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from nestor.types import Experts


@final
class Identity(Experts):
    """y = x: the token is copied, or skipped where the layer adds to a residual stream's branch."""

    def __init__(self, experts: int = 1):
        super().__init__()
        self.experts = experts

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D)."""
        return rows

    @property
    def costs(self) -> tuple[int, ...]:
        """Nothing, for each expert."""
        return (0,) * self.experts


@final
class Zero(Experts):
    """y = 0: the residual stream goes on alone."""

    def __init__(self, experts: int = 1):
        super().__init__()
        self.experts = experts

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D)."""
        return torch.zeros_like(rows)

    @property
    def costs(self) -> tuple[int, ...]:
        """Nothing, for each expert."""
        return (0,) * self.experts


@final
class Constant(Experts):
    """y = v_e: a learned vector for each expert, the same for all its tokens; zero at first."""

    def __init__(self, width: int, experts: int = 1):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(experts, width))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D)."""
        return self.value.to(rows.dtype).repeat_interleave(counts, 0, output_size=len(rows))

    @property
    def costs(self) -> tuple[int, ...]:
        """Nothing, for each expert."""
        return (0,) * len(self.value)


@final
class Modulation(Experts):
    """y = s_e * x + v_e, channel by channel: a learned scale and shift for each expert; the identity at first."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(experts, width))
        self.shift = nn.Parameter(torch.zeros(experts, width))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D)."""
        scale, shift = (
            part.to(rows.dtype).repeat_interleave(counts, 0, output_size=len(rows)) for part in (self.scale, self.shift)
        )
        return torch.addcmul(shift, scale, rows)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return (self.scale.shape[1],) * len(self.scale)
