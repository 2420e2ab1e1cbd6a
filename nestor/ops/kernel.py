"""A Triton kernel that multiplies for several bands in one launch.

The bands of a nested layer are too small, one by one, to fill a GPU, and what a launch costs is the same for each. Here
a program finds out by its number which band it works for; all experts share the matrices of which they read a slice.

Runs on CUDA GPUs, and in Triton's interpreter (TRITON_INTERPRET=1 before this is imported) anywhere else, slowly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

# Rows, columns and inner size of the tile that one program holds.
_TILE = (64, 64, 32)


def ready(device: torch.device) -> bool:
    """Whether the products run on a device."""
    return device.type == "cuda" or interpreted()


def interpreted() -> bool:
    """Whether Triton's interpreter takes a GPU's place."""
    return not isinstance(_multiply, triton.JITFunction)


def multiplied(
    left: Sequence[Tensor],
    right: Sequence[Tensor],
    *,
    biases: Sequence[Tensor] | None = None,
    tails: Sequence[Tensor] | None = None,
    width: int = 1,
    eps: float = 0.0,
    activation: str | None = None,
    onto: Sequence[Tensor] | None = None,
    gates: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """A launch for all bands: (M, K) and (K, N) of any strides -> (M, N), contiguous.

    With tails, rows are divided by their norm; biases, an activation, a gate for each row and what the answer is added
    onto follow, in this order.
    """
    halved = activation == "swiglu"
    shapes = [(len(a), b.shape[1]) for a, b in zip(left, right, strict=True)]
    out = tuple(a.new_empty(m, n // 2 if halved else n) for a, (m, n) in zip(left, shapes, strict=True))
    tiles = [triton.cdiv(m, _TILE[0]) * triton.cdiv(n, _TILE[1]) for m, n in shapes]
    if not sum(tiles):
        return out

    def given(parts: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        # What is not there is not read either.
        return out if parts is None else tuple(part.contiguous() for part in parts)

    flags: dict[str, Any] = {
        "BIASED": biases is not None,
        "NORMAL": tails is not None,
        "ACTIVATION": activation or "none",
        "ADDED": onto is not None,
        "GATED": gates is not None,
        # The interpreter has no products of bfloat16.
        "WIDE": interpreted(),
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
    }
    sizes: dict[str, Any] = dict(zip("MNK", _TILE, strict=True)) | {"BANDS": len(out)}
    _multiply[(sum(tiles),)](
        tuple(left),
        tuple(right),
        out,
        given(biases),
        given(tails),
        given(onto),
        given(gates),
        tuple(m for m, _ in shapes),
        tuple(n for _, n in shapes),
        tuple(a.shape[1] for a in left),
        tuple(a.stride(0) for a in left),
        tuple(a.stride(1) for a in left),
        tuple(b.stride(0) for b in right),
        tuple(b.stride(1) for b in right),
        width,
        eps,
        **flags,
        **sizes,
    )
    return out


@triton.jit
def _multiply(
    left,
    right,
    out,
    biases,
    tails,
    onto,
    gates,
    rows,
    columns,
    inner,
    left_row,
    left_inner,
    right_inner,
    right_column,
    width,
    eps,
    BANDS: tl.constexpr,
    BIASED: tl.constexpr,
    NORMAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ADDED: tl.constexpr,
    GATED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    program = tl.program_id(0)
    start = 0
    for j in tl.static_range(BANDS):  # pyright: ignore[reportGeneralTypeIssues]
        across = tl.cdiv(columns[j], N)
        tiles = tl.cdiv(rows[j], M) * across
        if (program >= start) & (program < start + tiles):
            m = ((program - start) // across * M + tl.arange(0, M)).to(tl.int64)
            n = ((program - start) % across * N + tl.arange(0, N)).to(tl.int64)
            some_rows, some_columns = m[:, None] < rows[j], n[None, :] < columns[j]
            total = tl.zeros((M, N), tl.float32)
            squares = tl.zeros((M,), tl.float32)
            for first in range(0, inner[j], K):
                k = first + tl.arange(0, K)
                x = tl.load(
                    left[j] + m[:, None] * left_row[j] + k[None, :] * left_inner[j],
                    mask=some_rows & (k[None, :] < inner[j]),
                    other=0.0,
                )
                w = tl.load(
                    right[j] + k[:, None] * right_inner[j] + n[None, :] * right_column[j],
                    mask=(k[:, None] < inner[j]) & some_columns,
                    other=0.0,
                )
                if NORMAL:
                    squares += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
                if WIDE:
                    x, w = x.to(tl.float32), w.to(tl.float32)
                total = tl.dot(x, w, total, input_precision=PRECISION)
            if NORMAL:
                # The norm of a row is one number, so that it may as well be divided by in the end.
                tail = tl.load(tails[j] + m, mask=m < rows[j], other=1.0)
                total *= tl.rsqrt((squares + tail) / width + eps)[:, None]
            if BIASED:
                total += tl.load(biases[j] + n, mask=n < columns[j], other=0.0).to(tl.float32)[None, :]
            if ACTIVATION == "swiglu":
                gate, value = tl.split(tl.reshape(total, (M, N // 2, 2)))
                half = (program - start) % across * (N // 2) + tl.arange(0, N // 2)
                place = out[j] + m[:, None] * (columns[j] // 2) + half[None, :]
                found = gate * _logistic(gate) * value
                tl.store(place, found.to(out[j].dtype.element_ty), some_rows & (half[None, :] < columns[j] // 2))
            else:
                total = _activated(total, ACTIVATION)
                if GATED:
                    total *= tl.load(gates[j] + m, mask=m < rows[j], other=0.0).to(tl.float32)[:, None]
                place = m[:, None] * columns[j] + n[None, :]
                if ADDED:
                    total += tl.load(onto[j] + place, mask=some_rows & some_columns, other=0.0).to(tl.float32)
                tl.store(out[j] + place, total.to(out[j].dtype.element_ty), some_rows & some_columns)
        start += tiles


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh y) / 2 is the logistic function of 2y.
        x = x * _logistic(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "quick_gelu":
        x = x * _logistic(1.702 * x)
    return x


@triton.jit
def _logistic(x):
    # Of the absolute value, so that nothing overflows.
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1.0 + small)
