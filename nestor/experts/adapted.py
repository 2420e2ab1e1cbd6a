"""Trained experts that stay as they are, with a small addition for all of them or for some."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from nestor.experts.feedforward import FeedForward
from nestor.experts.lowrank import LoRA
from nestor.ops import grouped
from nestor.types import Experts

if TYPE_CHECKING:
    from collections.abc import Sequence


@final
class Adapted(Experts):
    """Feed-forward experts with a low-rank addition to both linear maps of some of them; nothing changes at first.

    The experts' own weights no longer learn.

    Args:
        experts: E of them, one tensor for each map.
        rank: of the additions.
        which: numbers of the experts that get one; all unless given.
        scale: of the additions.

    Raises:
        ValueError: when an expert does not exist or is named twice, or none is.
    """

    def __init__(self, experts: FeedForward, rank: int, which: Sequence[int] | None = None, *, scale: float = 1.0):
        super().__init__()
        E, rows, D = experts.inward.shape
        _, out, H = experts.outward.shape
        chosen = tuple(range(E)) if which is None else tuple(sorted(which))
        if not chosen or len(set(chosen)) != len(chosen) or not 0 <= chosen[0] <= chosen[-1] < E:
            raise ValueError(
                f"experts to adapt must be some of 0 to {E - 1}, each once; got {which}. Name at least one."
            )
        self.which = chosen
        self.experts = experts.requires_grad_(False)
        self.inward = LoRA(D, rank, len(chosen), scale=scale, out=rows)
        self.outward = LoRA(H, rank, len(chosen), scale=scale, out=out)

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        own = self.experts
        inner = self._added(self.inward, rows, counts, grouped.linear(rows, counts, own.inward, own.inward_bias))
        hidden = own.activation.apply(inner)
        outer = grouped.linear(hidden, counts, own.outward, own.outward_bias)
        return self._added(self.outward, hidden, counts, outer)

    @torch.no_grad()
    def merged(self) -> FeedForward:
        """Plain experts that answer the same, the additions in their weights."""
        own, which = self.experts, list(self.which)
        inward, outward = own.inward.clone(), own.outward.clone()
        for weight, part in ((inward, self.inward), (outward, self.outward)):
            weight[which] += part.scale * part.up @ part.down
        return FeedForward.of(inward, outward, own.inward_bias, own.outward_bias, activation=own.activation)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        more = dict(zip(self.which, zip(self.inward.costs, self.outward.costs, strict=True), strict=True))
        return tuple(cost + sum(more.get(expert, ())) for expert, cost in enumerate(self.experts.costs))

    def _added(self, addition: LoRA, rows: Tensor, counts: Tensor, answer: Tensor) -> Tensor:
        which = torch.tensor(self.which, device=counts.device)
        mine = torch.zeros_like(counts, dtype=torch.bool).index_fill(0, which, True)
        place = mine.repeat_interleave(counts, output_size=len(rows)).nonzero().squeeze(-1)
        added = addition(rows.index_select(0, place), counts[which])
        return answer.index_add(0, place, added.to(answer.dtype))
