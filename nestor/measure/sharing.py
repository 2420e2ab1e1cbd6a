"""Two kernels at a time share the multipliers of an accelerator: what a layout of the one leaves to the other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from statistics import mean
from typing import TYPE_CHECKING

from nestor.measure.accelerator import Array
from nestor.measure.search import least

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.measure.accelerator import Encoder
    from nestor.measure.search import Choice


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """Attention and linear maps work on different items at a time, so that the slower one sets the pace.

    Attributes:
        encoder: whose maps they are.
        items: for each item, the queues of the experts of its layers, from decisions that were taken.
        memory: bytes on the chip.
    """

    encoder: Encoder
    items: Sequence[Sequence[Sequence[int]]]
    memory: int
    _known: dict[Choice, float] = field(default_factory=dict)

    def pace(self, choice: Choice, multipliers: int) -> float:
        """Cycles between two items, with the least parallelism of attention that is enough, or the most that fits.

        Args:
            choice: tile_in, tile_out, units and weight_bits of the linear kernel.
            multipliers: that there are.

        Returns:
            Infinity where the linear kernel does not fit.
        """
        linear, N = layout(choice), self.encoder.tokens

        def full(parallel: int) -> bool:
            array = replace(linear, parallel=parallel)
            return array.multipliers > multipliers or array.memory(self.encoder.width) > self.memory

        def quick(parallel: int) -> bool:
            return self.encoder.attention(replace(linear, parallel=parallel)) <= slow

        if full(1):
            return inf
        if choice not in self._known:
            self._known[choice] = mean(self.encoder.linear(linear, item).cycles for item in self.items)
        slow = self._known[choice]
        most = (least(full, 1, N) or N + 1) - 1
        parallel = least(quick, 1, most) or most
        return max(slow, self.encoder.attention(replace(linear, parallel=parallel)))


def layout(choice: Choice) -> Array:
    """An accelerator of these tile_in, tile_out, units and weight_bits."""
    tile_in, tile_out, units, bits = choice
    return Array(tile_in=tile_in, tile_out=tile_out, units=units, weight_bits=bits, parallel=1)
