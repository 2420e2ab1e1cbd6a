"""Products of eight-bit numbers in plain operators, for runtimes that make their own of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.ops.int8 import rounded_weight
from nestor.ops.linear import ACTIVATIONS

if TYPE_CHECKING:
    from nestor.ops.int8 import Reading, Steps


@final
class Portable:
    """What `nestor.ops.int8.Product` does, in single precision: rows and weights stand for the same whole numbers.

    Runs anywhere, and no faster than a product that was not rounded. Programs hold the weights as whole numbers.

    Args:
        weight: (N, K), any precision.
        bias: (N,).
        reading: of the rows that it is applied to.
    """

    def __init__(self, weight: Tensor, bias: Tensor, reading: Reading):
        self.given = reading.steps
        self.shrink = None if reading.reaches is None else 1 / reading.reaches
        self.whole, self.scale = rounded_weight(weight, reading)
        self.bias = bias.detach().float().clone()

    def __deepcopy__(self, memo: dict[int, object]) -> Portable:
        # Nothing in it ever changes.
        return self

    def taken(self, rows: Tensor, scale: Tensor | None = None) -> Tensor:
        """Rows (..., K), times scale (..., 1) if given, as the nearest steps stand for them: single precision."""
        rows = rows.float() if self.shrink is None else rows.float() * self.shrink
        return _stepped(rows if scale is None else rows * scale, self.given)

    def __call__(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """(..., K) -> (..., N) in single precision or bfloat16."""
        return F.linear(rows, self.whole.float() * self.scale[:, None], self.bias).to(dtype)

    def activated(self, rows: Tensor, activation: str, answer: Steps | None = None) -> Tensor:
        """act(x W^T + b): (..., K) -> (..., N), or half as many for a gated activation, in single precision.

        As the nearest steps of the answer stand for it, where they are given.
        """
        found = ACTIVATIONS[activation](self(rows, torch.float32))
        return found if answer is None else _stepped(found, answer)

    def added(self, rows: Tensor, onto: Tensor) -> Tensor:
        """onto + x W^T + b: (..., K) and (..., N) -> (..., N)."""
        return onto + self(rows, onto.dtype)


def _stepped(values: Tensor, steps: Steps) -> Tensor:
    return stepped(values, steps.size, steps.zero)


@torch.library.custom_op("nestor::stepped", mutates_args=())
def stepped(values: Tensor, size: float, zero: int) -> Tensor:
    """What the nearest of 256 steps stands for, values (...) in single precision.

    One operator, which those who write programs can tell from others; torch's own cannot be captured where the number
    of items is left open.
    """
    return torch.fake_quantize_per_tensor_affine(values, size, zero, 0, 255)


@stepped.register_fake
def _(values: Tensor, size: float, zero: int) -> Tensor:
    return torch.empty_like(values)
