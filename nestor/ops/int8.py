"""Products of eight-bit numbers, with what follows them in one pass over memory.

Activations become one of 256 steps between bounds that are known in advance; weights are rounded to 255 steps, each
row by its largest. oneDNN multiplies whole numbers; bias, GELU, a sum and the next rounding are part of the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nestor.ops.linear import ACTIVATIONS

_LAST = 255
# What oneDNN calls them.
_FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
# A bound below the largest value cuts a few large ones off and makes all others finer.
_SHARES = tuple(0.95**power for power in range(32))
_SAMPLE = 1 << 18
_EXACT = ("avx512_vnni", "avx_vnni", "amx_int8")
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Steps:
    """256 evenly spaced numbers, zero among them: size * (step - zero)."""

    size: float
    zero: int

    def of(self, rows: Tensor, scale: Tensor) -> Tensor:
        """The nearest step to rows (..., K) times scale (..., 1), single precision: (..., K), uint8."""
        moved = torch.addcmul(rows.new_tensor(self.zero + 0.5, dtype=torch.float32), rows, scale / self.size)
        return moved.clamp_(0, _LAST).to(torch.uint8)

    def value(self, steps: Tensor) -> Tensor:
        """What steps stand for, single precision."""
        return (steps.float() - self.zero) * self.size


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """How rows (..., K) are rounded before a product.

    Reaches move from the rows into the weights, as in SmoothQuant (arXiv 2211.10438), but whole: rows of the norm in
    principal components differ more from channel to channel than weights do.

    Attributes:
        steps: of the rows over their reaches.
        reaches: (K,), how far each channel goes, so that small ones are not lost beside large ones; None where all go
            as far.
    """

    steps: Steps
    reaches: Tensor | None = None


_AS_NUMBERS = Steps(size=1.0, zero=0)


def ready() -> bool:
    """Whether this processor sums products of eight-bit numbers exactly; older ones overflow on the way."""
    # Torch before 2.10 does not tell, and is taken to have none.
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkldnn.is_available() and any(able.get(name) for name in _EXACT)


def fitted(values: Tensor) -> Steps:
    """The steps that come closest to values (...), in the mean of the squares."""
    low, high = min(0.0, float(values.min())), max(_LEAST, float(values.max()))
    few = values.flatten()[:: max(1, values.numel() // _SAMPLE)]
    one = few.new_ones(())

    def error(steps: Steps) -> float:
        return float((steps.value(steps.of(few, one)) - few).square().mean())

    above = min((_between(low, share * high) for share in _SHARES), key=error)
    reach = above.size * (_LAST - above.zero)
    return min((_between(share * low, reach) for share in _SHARES), key=error)


def rounded_weight(weight: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
    """A weight (N, K), which takes the reaches of what it reads, as int8 (N, K) and the sizes of the steps (N,)."""
    weight = weight.detach().float()
    if reading.reaches is not None:
        weight = weight * reading.reaches
    scale = weight.abs().amax(1).clamp_min(_LEAST) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


@final
class Product:
    """x W^T + b of rows in eight bits, and what follows it.

    Runs on CPUs, without gradients.

    Args:
        weight: (N, K), any precision.
        bias: (N,).
        reading: of the rows that it is applied to.
    """

    def __init__(self, weight: Tensor, bias: Tensor, reading: Reading):
        self.given = reading.steps
        self.shrink = None if reading.reaches is None else 1 / reading.reaches
        whole, self.scale = rounded_weight(weight, reading)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self.bias = bias.detach().float().clone()

    def __deepcopy__(self, memo: dict[int, object]) -> Product:
        # Nothing in it ever changes, and what oneDNN packs cannot be copied.
        return self

    def taken(self, rows: Tensor, scale: Tensor | None = None) -> Tensor:
        """Rows (..., K), times scale (..., 1) in single precision if given, as the product wants them: uint8."""
        if scale is None:
            scale = rows.new_ones((), dtype=torch.float32)
        return self.given.of(rows if self.shrink is None else rows * self.shrink, scale)

    def __call__(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """(..., K), uint8 -> (..., N) in single precision or bfloat16."""
        return self._product(rows, dtype)

    def activated(self, rows: Tensor, activation: str, answer: Steps | None = None) -> Tensor:
        """act(x W^T + b): (..., K), uint8 -> (..., N), or half as many for a gated activation.

        In steps of the answer where they are given, else in single precision.
        """
        if activation in _FUSED:
            dtype = torch.float32 if answer is None else torch.uint8
            return self._product(rows, dtype, answer or _AS_NUMBERS, *_FUSED[activation])
        found = ACTIVATIONS[activation](self._product(rows, torch.float32))
        return found if answer is None else answer.of(found, found.new_ones(()))

    def added(self, rows: Tensor, onto: Tensor) -> Tensor:
        """onto + x W^T + b: (..., K), uint8, and (..., N) -> (..., N)."""
        return torch.ops.onednn.qlinear_pointwise.binary(
            *self._factors(rows),
            onto,
            self.bias,
            1.0,
            0,
            onto.dtype,
            1.0,
            0,
            "add",
            1.0,
            "none",
            [],
            "",
        )

    def _factors(self, rows: Tensor) -> tuple[object, ...]:
        return rows, self.given.size, self.given.zero, self.weight, self.scale, self.zeros

    def _product(
        self, rows: Tensor, dtype: torch.dtype, answer: Steps = _AS_NUMBERS, after: str = "none", how: str = ""
    ) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            *self._factors(rows),
            self.bias,
            answer.size,
            answer.zero,
            dtype,
            after,
            [],
            how,
        )


def _between(low: float, high: float) -> Steps:
    size = (high - low) / _LAST
    return Steps(size=size, zero=round(-low / size))
