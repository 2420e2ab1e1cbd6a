"""Token merging on an ordinary vision transformer: the rival that needs no training."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, final

import torch
from torch.nn import functional as F

from nestor.layers.nested import NestedBlock
from nestor.models.opened import ask, tell
from nestor.models.wrapped import Wrapped
from nestor.ops.bands import Band, sort
from nestor.ops.tokens import Merge, keep, match, match_macs, mergeable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from nestor.models.vit import ViT
    from nestor.types import Output


def constant(gone: int, depth: int) -> list[int]:
    """Equally many in each block, the published default; the first blocks one more where that does not come out."""
    return [gone // depth + (i < gone % depth) for i in range(depth)]


def falling(gone: int, depth: int) -> list[int]:
    """Many in the first block and linearly fewer in each later one, the published alternative: kinder below half."""
    upto = [round(gone * (1 - (1 - i / depth) ** 2)) for i in range(depth + 1)]
    return [b - a for a, b in pairwise(upto)]


@final
class Merged(Wrapped):
    """A dense vision transformer that merges the most alike tokens in each block (ToMe, arXiv 2210.09461).

    Between attention and feed-forward, r tokens join the token whose keys are most like theirs; attention counts a
    token as often as patches went into it. It uses the dense network's own weights, needs no training, and can be
    trained.

    Args:
        dense: a ViT with one expert, shared and not copied.
        budget: as in ViT; may be set between any two calls, or given with a call.
        spread: how a number of merged patches is spread over a number of blocks: `constant` or `falling`.

    Raises:
        ValueError: when the network has more than one expert.
    """

    def __init__(self, dense: ViT, budget: float = 1.0, spread: Callable[[int, int], Sequence[int]] = constant):
        super().__init__(dense, budget)
        if dense.settings.nest.experts != 1:
            raise ValueError(
                f"token merging runs a dense network, with 1 expert; got {dense.settings.nest.experts}. "
                "Give it the network from before nesting."
            )
        self.spread = spread
        self._plans: dict[tuple[int, float], tuple[int, ...]] = {}

    def run(self, images: Tensor, plan: tuple[int, ...]) -> Output:
        """Run a plan, as from `plan` or `schedule`."""
        dense, prefix = self.model, self.settings.prefix
        tokens = dense.embed(images)
        bands, order = sort(tokens, None, plan[:1], self.settings.nest.widths, prefix)
        (band,) = bands
        size = tokens.new_ones(*tokens.shape[:2], 1, dtype=torch.float32)
        merge = keep(tokens)
        for block, before, after in zip(dense.blocks, plan, plan[1:], strict=False):
            assert isinstance(block, NestedBlock)
            # Without merged tokens the mask is zero, and attention is faster without one.
            band, keys = _attend(block, band, None if before == plan[0] else size)
            if after < before:
                step = match(keys.mean(1), before - after, prefix)
                rows, size = step.merge(band.rows, size)
                band = replace(band, rows=rows, tail=band.tail[:, : step.length])
                merge = merge.then(step)
            (band,) = block.mlp((band,))
        return dense.finish((self._back(band, merge),), order)

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """How many patches stand before the first block and after each block: depth + 1 whole numbers.

        As few are merged as keep the budget, spread over the blocks by `spread`.

        Raises:
            ValueError: when the budget lies outside what merging can reach.
        """
        if (patches, budget) not in self._plans:
            self._plans[patches, budget] = self._solve(patches, budget)
        return self._plans[patches, budget]

    def schedule(self, patches: int, r: int | Sequence[int]) -> tuple[int, ...]:
        """The plan in which r patches vanish in each block (or r[i] in block i), and never more than can.

        Raises:
            ValueError: when there is not one r a block, or one is negative.
        """
        depth = self.settings.depth
        each = (r,) * depth if isinstance(r, int) else tuple(r)
        if len(each) != depth or min(each) < 0:
            raise ValueError(f"r must be a number above or at 0, or one for each of {depth} blocks; got {r}.")
        stages = [patches]
        for gone in each:
            stages.append(stages[-1] - min(gone, mergeable(stages[-1])))
        return tuple(stages)

    def macs(self, plan: Sequence[int]) -> int:
        """Multiply-accumulates of one picture under this plan, the matching included."""
        dense, nest = self.model, self.settings.nest
        prefix, each = self.settings.prefix, nest.widths[-1] // nest.heads[-1]
        total = dense.embed.macs(plan[0])
        for block, before, after in zip(dense.blocks, plan, plan[1:], strict=False):
            assert isinstance(block, NestedBlock)
            total += block.attention.macs([before + prefix]) + block.mlp.macs([after + prefix])
            total += match_macs(before, each) if after < before else 0
        return total + (0 if dense.head is None else dense.head.macs(dense.readout, [plan[0] + prefix]))

    def least_budget(self, patches: int) -> float:
        """The smallest budget that merging can reach."""
        return self.macs(self.schedule(patches, mergeable(patches))) / self.full_macs(patches)

    def _solve(self, patches: int, budget: float) -> tuple[int, ...]:
        depth, full = self.settings.depth, self.full_macs(patches)
        for gone in range(depth * mergeable(patches) + 1) if budget <= 1 else ():
            plan = self.schedule(patches, self.spread(gone, depth))
            if self.macs(plan) / full <= budget:
                return plan
        raise ValueError(
            f"budget must lie in [{self.least_budget(patches):.3g}, 1] for merging {patches} patches in {depth} "
            f"blocks; got {budget:.4g}. Choose one in between."
        )

    def _back(self, band: Band, merge: Merge) -> Band:
        if merge.length == merge.target.shape[1]:
            return band
        return replace(band, rows=merge.unmerge(band.rows), tail=merge.unmerge(band.tail))


def _attend(block: NestedBlock, band: Band, size: Tensor | None) -> tuple[Band, Tensor]:
    """Attention with each key counted `size` (B, T, 1) times: the new band and keys (B, heads, T, D / heads)."""
    query, key, value = ask(block, band)
    mask = None if size is None else size.log().to(query.dtype).transpose(1, 2).unsqueeze(1)
    return tell(block, band, F.scaled_dot_product_attention(query, key, value, attn_mask=mask)), key
