"""One linear map for each expert, on rows that are sorted by expert.

Three ways to the same numbers: a plain loop, which the others are tested against; tiles of equal size in one batched
product; and torch's own grouped product. Only the loop visits experts one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 4
"""Up to here a loop is as fast as anything."""


def linear(rows: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows W_e^T + b_e for each expert's rows, by whichever way suits the device, the numbers and the load.

    An expert without rows gets zero gradients, never missing ones.

    Args:
        rows: (R, D), sorted by expert.
        counts: (E,), rows of each expert; they add up to R.
        weight: (E, O, D).
        bias: (E, O).

    Returns:
        (R, O).

    Raises:
        ValueError: when the shapes do not fit.
    """
    E, _, D = weight.shape
    if rows.ndim != 2 or rows.shape[1] != D or counts.shape != (E,):
        raise ValueError(
            f"{E} experts need rows (R, {D}) and counts ({E},); got {tuple(rows.shape)} and {tuple(counts.shape)}. "
            "Dispatch with a routing over as many experts."
        )
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if _compiling():
        return tiled(rows, counts, weight, bias)
    if E <= FEW or not len(rows):
        return loop(rows, counts, weight, bias)
    return (native if has_native(rows, weight) else tiled)(rows, counts, weight, bias)


def loop(rows: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One expert after the other: the reference."""
    parts = rows.split(counts.tolist())
    biases = (None,) * len(weight) if bias is None else bias.unbind()
    return torch.cat([F.linear(part, w, b) for part, w, b in zip(parts, weight.unbind(), biases, strict=True)])


def tiled(rows: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One batched product of tiles of R / E rows, each with the weights of its expert.

    However uneven the load, there are at most 2 E tiles, hence at most twice the rows and twice the weights. While
    torch compiles there are always so many, so that no shape hangs on the load and one graph serves every decision.
    """
    R, E = len(rows), len(weight)
    # A tile of one row would be compiled apart.
    size = R // E + 2 if _compiling() else max(1, -(-R // E))
    tiles = (counts + size - 1) // size
    each = torch.arange(E, device=rows.device)
    if _compiling():
        # Tiles beyond the last are zeros that nobody reads.
        place = torch.arange(2 * E, device=rows.device)
        tile_expert = torch.searchsorted(tiles.cumsum(0), place, right=True).clamp(max=E - 1)
    else:
        tile_expert = each.repeat_interleave(tiles)
    expert = each.repeat_interleave(counts, output_size=R)
    within = torch.arange(R, device=rows.device) - (counts.cumsum(0) - counts)[expert]
    place = (tiles.cumsum(0) - tiles)[expert] * size + within
    cells = rows.new_zeros(len(tile_expert) * size, rows.shape[1]).index_copy(0, place, rows).unflatten(0, (-1, size))
    matrix = weight[tile_expert].mT
    out = cells @ matrix if bias is None else torch.baddbmm(bias[tile_expert].unsqueeze(1), cells, matrix)
    return out.flatten(0, 1).index_select(0, place)


def native(rows: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's grouped product; see `has_native`."""
    ends = counts.cumsum(0).to(torch.int32)
    out = F.grouped_mm(rows.contiguous(), weight.mT, offs=ends)
    if out.requires_grad:
        # Its backward refuses gradients that were expanded, such as that of a plain sum.
        out.register_hook(Tensor.contiguous)
    return out if bias is None else out + bias.repeat_interleave(counts, 0, output_size=len(rows))


def has_native(rows: Tensor, weight: Tensor) -> bool:
    """Whether torch's grouped product takes these numbers: rows of 16 bytes, and on a GPU an Ampere or later."""
    step = 16 // rows.element_size()
    fits = weight.is_contiguous() and weight.shape[1] % step == 0 and weight.shape[2] % step == 0
    if not fits or not hasattr(F, "grouped_mm") or rows.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if rows.device.type == "cuda":
        return torch.cuda.get_device_capability(rows.device) >= (8, 0)
    return rows.device.type == "cpu" and not torch.compiler.is_compiling()


def _compiling() -> bool:
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()
