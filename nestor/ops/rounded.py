"""Numbers as small hardware holds them: fixed-point numbers, and a function from a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

STEP, REACH = 1 / 32, 5.5
"""Between two entries of the table of GELU, and where the table ends: 177 entries."""


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Numbers of so many bits, of which `whole`, the sign among them, stand before the point.

    Raises:
        ValueError: when there is no bit before the point, or there are more than bits.
    """

    bits: int
    whole: int

    def __post_init__(self) -> None:
        if not 1 <= self.whole <= self.bits <= 32:
            raise ValueError(
                f"whole must lie in [1, bits] and bits be at most 32; got {self.whole} and {self.bits}. Take 16 and 2."
            )

    def __call__(self, values: Tensor) -> Tensor:
        """The nearest of these numbers to each value; what lies beyond them becomes the largest or smallest."""
        steps = 2.0 ** (self.bits - self.whole)
        last = 2.0 ** (self.bits - 1)
        return ((values.double() * steps).round().clamp(-last, last - 1) / steps).to(values.dtype)


def gelu_by_table(values: Tensor) -> Tensor:
    """GELU(x) = ReLU(x) - delta(|x|), with delta from a table between whose entries a line is drawn.

    The error is below 1e-4; beyond the table it is that of ReLU, below 2e-7.
    """
    size = values.detach().abs().float().clamp(max=REACH) / STEP
    low = size.floor().clamp(max=REACH / STEP - 1).long()
    # A copy for the device, of the dtype of the answer; the table is short.
    table = _deltas().to(values.device)
    first, second = table[low], table[low + 1]
    delta = first + (size - low) * (second - first)
    delta = torch.where(values.abs() < REACH, delta, 0)
    return values.relu() - delta.to(values.dtype)


@cache
def _deltas() -> Tensor:
    """(177,): x times the chance that a normal number lies above x."""
    x = torch.arange(round(REACH / STEP) + 1, dtype=torch.float64) * STEP
    return (x * torch.special.ndtr(-x)).float()
