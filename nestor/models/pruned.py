"""Token pruning on an ordinary vision transformer: what the class token does not look at is dropped."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, final

import torch

from nestor.models.opened import ask, tell
from nestor.models.wrapped import Wrapped
from nestor.ops.attention import attend
from nestor.ops.bands import Band, sort
from nestor.ops.tokens import fuse, keep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.layers.nested import NestedBlock
    from nestor.models.vit import ViT
    from nestor.types import Output

# Added to each token's attention: those that get none at all still have a mean, and no other mean is moved.
_SOME = 1e-12


def quarters(depth: int) -> tuple[int, ...]:
    """Blocks after a quarter, half and three quarters of the depth, counted from 0: (3, 6, 9) of 12, as published."""
    return tuple(sorted({depth * part // 4 for part in (1, 2, 3)}))


@final
class Pruned(Wrapped):
    """A dense vision transformer that keeps the patches its class token attends to most (EViT, arXiv 2202.07800).

    In a few blocks, between attention and feed-forward, the patches to which the class token gives the least attention,
    mean over heads, become one token: their mean, weighted by that attention. It is never dropped again, so that there
    is one such token for each of these stages. All stages keep the same fraction of the patches they get, and at least
    one. The network uses the dense one's own weights, needs no training, and can be trained.

    A patch that was dropped is shown as the fused token that it went into, to the head and in `Output.tokens`, so that
    a mean over the patches still counts all of them.

    Args:
        dense: a ViT with one expert and a class token, shared and not copied.
        budget: as in ViT; may be set between any two calls, or given with a call.
        stages: numbers of the blocks that drop patches, counted from 0; `quarters` of the depth when None.

    Raises:
        ValueError: when the network has more than one expert or no class token, or lacks one of the blocks.
    """

    def __init__(self, dense: ViT, budget: float = 1.0, stages: Sequence[int] | None = None):
        super().__init__(dense, budget)
        s = dense.settings
        if s.nest.experts != 1:
            raise ValueError(
                f"token pruning runs a dense network, with 1 expert; got {s.nest.experts}. "
                "Give it the network from before nesting."
            )
        if s.prefix == 0:
            raise ValueError(
                "token pruning asks the class token, the first of the prefix; got a network with prefix 0. "
                "Use nestor.models.merged.Merged."
            )
        chosen = quarters(s.depth) if stages is None else tuple(stages)
        if not chosen or any(b <= a for a, b in pairwise((-1, *chosen, s.depth))):
            raise ValueError(
                f"stages must be numbers of blocks from 0 to {s.depth - 1}, at least one, in rising order; "
                f"got {chosen}. Leave them out for {quarters(s.depth)}."
            )
        self.stages = chosen
        self._known: dict[int, list[tuple[int, tuple[int, ...]]]] = {}

    def run(self, images: Tensor, plan: tuple[int, ...]) -> Output:
        """Run a plan, as from `plan`: how many patches there are, and how many of them each stage keeps.

        Raises:
            ValueError: when the plan does not fit the pictures and the stages.
        """
        rows, columns = self.model.embed.cells(images.shape)
        self._check(plan, rows * columns)
        dense, prefix = self.model, self.settings.prefix
        tokens = dense.embed(images)
        (first,), order = sort(tokens, None, plan[:1], self.settings.nest.widths, prefix)
        band, whole, stages = first, keep(tokens), 0
        for block, (before, after) in zip(dense.blocks, self._steps(plan), strict=True):
            if before == after:
                (band,) = block((band,))
                continue
            band, weight = _attend(block, band)
            fused = fuse(weight, after, prefix + stages)
            whole, stages = whole.then(fused), stages + 1
            rows, _ = fused.merge(band.rows, weight.unsqueeze(-1))
            (band,) = block.mlp((replace(band, rows=rows, tail=band.tail[:, : fused.length]),))
        rows = whole.unmerge(band.rows) if stages else band.rows
        return dense.finish((replace(first, rows=rows),), order)

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """How many patches there are, and how many of them each stage keeps: whole numbers, one more than stages.

        They follow from the greatest fraction that keeps the budget, the same in each stage.

        Raises:
            ValueError: when the budget lies outside what pruning can reach.
        """
        full = self.full_macs(patches)
        for macs, plan in self._choices(patches) if budget <= 1 else ():
            if macs / full <= budget:
                return plan
        raise ValueError(
            f"budget must lie in [{self.least_budget(patches):.3g}, 1] for pruning {patches} patches in blocks "
            f"{self.stages}; got {budget:.4g}. Choose one in between."
        )

    def macs(self, plan: Sequence[int]) -> int:
        """Multiply-accumulates of one picture under this plan, the class token's own row of attention included."""
        dense, D = self.model, self.settings.nest.widths[-1]
        total, tokens = dense.embed.macs(plan[0]), plan[0] + self.settings.prefix
        whole = tokens
        for block, (before, after) in zip(dense.blocks, self._steps(plan), strict=True):
            total += block.attention.macs([tokens])
            if after < before:
                total += tokens * D
                tokens -= before - after - 1
            total += block.mlp.macs([tokens])
        return total + (0 if dense.head is None else dense.head.macs(dense.readout, [whole]))

    def least_budget(self, patches: int) -> float:
        """The smallest budget that pruning can reach, usually with one patch left beside the fused tokens."""
        return min(macs for macs, _ in self._choices(patches)) / self.full_macs(patches)

    def _choices(self, patches: int) -> list[tuple[int, tuple[int, ...]]]:
        """Every plan in which all stages keep the same fraction, after what it costs; the greatest fraction first."""
        if patches not in self._known:
            self._known[patches] = [(self.macs(plan), plan) for plan in _plans(patches, len(self.stages))]
        return self._known[patches]

    def _steps(self, plan: Sequence[int]) -> list[tuple[int, int]]:
        """How many patches each block gets and keeps, fused ones not counted; the same twice where none is dropped."""
        steps = dict(zip(self.stages, pairwise(plan), strict=True))
        return [steps.get(number, (0, 0)) for number in range(self.settings.depth)]

    def _check(self, plan: Sequence[int], patches: int) -> None:
        falling = all(a >= b for a, b in pairwise((*plan, 0)))
        if len(plan) != len(self.stages) + 1 or plan[0] != patches or not falling:
            raise ValueError(
                f"a plan must name the {patches} patches and how many of them each of {len(self.stages)} stages keeps, "
                f"never more than the one before; got {tuple(plan)}. Take it from plan()."
            )


def _plans(patches: int, stages: int) -> list[tuple[int, ...]]:
    """ceil(patches * rate ** stage) for each stage, at every rate from 1 down where one of them changes."""
    # A stage keeps k patches from the rate (k / patches) ** (1 / stage) on; at equal rates the last stage goes first.
    changes = [((k / patches) ** (1 / i), i, k) for i in range(1, stages + 1) for k in range(1, patches)]
    plan = [patches] * (stages + 1)
    plans = [tuple(plan)]
    for _, stage, k in sorted(changes, reverse=True):
        plan[stage] = k
        plans.append(tuple(plan))
    return plans


def _attend(block: NestedBlock, band: Band) -> tuple[Band, Tensor]:
    """Attention: the new band, and how much of it the first token gives to each, mean over heads, (B, T)."""
    query, key, value = ask(block, band)
    scores = query[:, :, :1] @ key.transpose(2, 3) * key.shape[-1] ** -0.5
    weight = scores.softmax(-1, dtype=torch.float32).mean(1).squeeze(1)
    return tell(block, band, attend(query, key, value)), weight + _SOME
