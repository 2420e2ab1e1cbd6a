"""Experts of different kinds side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.types import Experts

if TYPE_CHECKING:
    from collections.abc import Sequence


@final
class Joined(Experts):
    """The experts of all parts, in their order: networks beside skips, wide ones beside narrow ones.

    Raises:
        ValueError: when there is no part.
    """

    def __init__(self, parts: Sequence[Experts]):
        super().__init__()
        if not parts:
            raise ValueError("there must be experts to join; got none.")
        self.parts = nn.ModuleList(parts)

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        shares = counts.split([len(part.costs) for part in self._all()])
        pieces = rows.split([int(share.sum()) for share in shares])
        return torch.cat([part(piece, share) for part, piece, share in zip(self._all(), pieces, shares, strict=True)])

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return tuple(cost for part in self._all() for cost in part.costs)

    def _all(self) -> list[Experts]:
        return [part for part in self.parts if isinstance(part, Experts)]
