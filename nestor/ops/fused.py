"""Products of all bands of a nested layer on a GPU, with the norm before them and all that follows fused.

Where gradients are wanted, products still have one launch for all bands, forward and twice backward, and torch does the
rest.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestor.ops.bands import normalise
from nestor.ops.kernel import multiplied
from nestor.ops.linear import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence


def asked(
    rows: Sequence[Tensor],
    tails: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    width: int,
    eps: float,
    activation: str | None = None,
) -> tuple[Tensor, ...]:
    """act(x / rms(x) W^T + b) of every band: what `normalise`, then `linear` or `activated` give.

    Args:
        rows: (B, n, d) of each band.
        tails: (B, n, 1), squared norms of the channels beyond d.
        weights: (N, d) of each band; slices need not be contiguous.
        biases: (N,) of each band.
        width: D.
        eps: of the norm.
        activation: one of nestor.ops.linear.ACTIVATIONS; None for none.

    Returns:
        (B, n, N) of each band, or half as many for a gated activation.
    """
    if _learning(rows, tails, weights, biases):
        normal = [normalise(x, tail, width, eps) for x, tail in zip(rows, tails, strict=True)]
        found = products(normal, weights, biases)
        return found if activation is None else tuple(ACTIVATIONS[activation](each) for each in found)
    return _launched(rows, weights, biases, tails=tails, width=width, eps=eps, activation=activation)


def told(
    rows: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    onto: Sequence[Tensor],
    gates: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """onto + gate (x W^T + b) of every band.

    Args:
        rows: (B, n, K) of each band.
        weights: (d, K) of each band; slices need not be contiguous.
        biases: (d,) of each band.
        onto: (B, n, d) of each band.
        gates: (B, n, 1) of each band; 1 when None.

    Returns:
        (B, n, d) of each band.
    """
    if _learning(rows, weights, biases, onto, gates or ()):
        found = products(rows, weights, biases)
        if gates is None:
            return tuple(x + y for x, y in zip(onto, found, strict=True))
        return tuple(torch.addcmul(x, y, g.to(y.dtype)) for x, y, g in zip(onto, found, gates, strict=True))
    return _launched(rows, weights, biases, onto=onto, gates=gates)


def products(rows: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x W^T + b of every band: (B, n, K), (N, K) and (N,) -> (B, n, N), with gradients, and as autocast says."""
    parts, device = (*rows, *weights, *biases), weights[0].device.type
    if torch.is_autocast_enabled(device):
        parts = tuple(part.to(torch.get_autocast_dtype(device)) for part in parts)
    return _Products.apply(len(rows), *parts)  # pyright: ignore[reportReturnType]


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bands: int, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*parts[: 2 * bands])
        return _launched(parts[:bands], parts[bands : 2 * bands], parts[2 * bands :])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        bands, (_, *wanted) = len(grads), ctx.needs_input_grad
        rows, weights = ctx.saved_tensors[:bands], ctx.saved_tensors[bands:]
        flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        of_rows = of_weights = of_biases = (None,) * bands
        if any(wanted[:bands]):
            found = multiplied(flat, weights)
            of_rows = tuple(dx.view(x.shape) for dx, x in zip(found, rows, strict=True))
        if any(wanted[bands : 2 * bands]):
            of_weights = multiplied([g.T for g in flat], [x.reshape(-1, x.shape[-1]) for x in rows])
        if any(wanted[2 * bands :]):
            of_biases = tuple(g.sum(0) for g in flat)
        return (None, *of_rows, *of_weights, *of_biases)


def _learning(*parts: Sequence[Tensor]) -> bool:
    """Whether a gradient is wanted, or autocast is to choose the precision of each step."""
    found = [*chain(*parts)]
    cast = any(torch.is_autocast_enabled(part.device.type) for part in found)
    return cast or (torch.is_grad_enabled() and any(part.requires_grad for part in found))


def _launched(
    rows: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], **more: Any
) -> tuple[Tensor, ...]:
    """Bands of (B, n, K) and their matrices (N, K), as `multiplied` wants them: (B, n, N)."""
    flat = [x.reshape(-1, x.shape[-1]) for x in rows]
    found = multiplied(flat, [weight.T for weight in weights], biases=biases, **more)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for x, y in zip(rows, found, strict=True))
