"""The block of a nested transformer with one launch for each projection of all experts, to run on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch
from torch import nn

from nestor.layers.nested import NestedBlock
from nestor.ops.attention import mixed
from nestor.ops.fused import asked, told
from nestor.ops.thin import sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.ops.bands import Band


@final
class FusedBlock(nn.Module):
    """What a NestedBlock does, with its weights: attention, then feed-forward.

    Four launches multiply, for all experts at once, each with the norm before it or the sum behind it.

    Args:
        block: whose layers become a part of this one.
    """

    def __init__(self, block: NestedBlock):
        super().__init__()
        self.nest, self.fan = block.nest, block.fan
        self.attention, self.mlp = block.attention, block.mlp

    def forward(self, bands: Sequence[Band]) -> tuple[Band, ...]:
        """Bands of (B, n, d) -> the same bands with both answers added."""
        active = [band for band in bands if self.nest.widths[band.expert]]
        skipped = [band for band in bands if not self.nest.widths[band.expert]]
        return (*self._fed(self._attended(active)), *skipped)

    def macs(self, sizes: Sequence[int]) -> int:
        """Multiply-accumulates of one item with sizes[j] tokens of expert j."""
        return NestedBlock.macs(self, sizes)  # pyright: ignore[reportArgumentType]

    def _attended(self, bands: Sequence[Band]) -> list[Band]:
        layer, D = self.attention, self.nest.widths[-1]
        inward = [layer.inward_of(band.expert) for band in bands]
        parts = asked(
            [band.rows for band in bands],
            [band.tail for band in bands],
            inward,
            [layer.inward_bias[band.expert, : len(w)] for band, w in zip(bands, inward, strict=True)],
            width=D,
            eps=layer.eps,
        )
        answers = mixed(parts, D, D // self.nest.heads[-1], sizes(bands))
        rows = told(
            answers,
            [layer.outward[: band.rows.shape[-1], : y.shape[-1]] for band, y in zip(bands, answers, strict=True)],
            [layer.outward_bias[band.expert, : band.rows.shape[-1]] for band in bands],
            [band.rows for band in bands],
        )
        return [replace(band, rows=each) for band, each in zip(bands, rows, strict=True)]

    def _fed(self, bands: Sequence[Band]) -> list[Band]:
        layer, nest = self.mlp, self.nest
        reach = [self.fan * nest.hidden[band.expert] for band in bands]
        units = asked(
            [band.rows for band in bands],
            [band.tail for band in bands],
            [layer.inward[:h, : nest.widths[band.expert]] for band, h in zip(bands, reach, strict=True)],
            [layer.inward_bias[band.expert, :h] for band, h in zip(bands, reach, strict=True)],
            width=nest.widths[-1],
            eps=layer.eps,
            activation=layer.activation,
        )
        rows = told(
            units,
            [layer.outward_of(band.expert) for band in bands],
            [layer.outward_bias[band.expert, : nest.widths[band.expert]] for band in bands],
            [band.rows for band in bands],
            self._gates(bands),
        )
        return [replace(band, rows=each) for band, each in zip(bands, rows, strict=True)]

    def _gates(self, bands: Sequence[Band]) -> list[torch.Tensor] | None:
        alpha, gates = self.mlp.alpha, [band.gate for band in bands if band.gate is not None]
        if alpha is None or not gates:
            return None
        # The gradient passes the clamp, so that an alpha pushed below zero can come back.
        held = alpha + (alpha.clamp(0, 1) - alpha).detach()
        return [1 + held * gate for gate in gates]
