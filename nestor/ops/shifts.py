"""Products with powers of two in whole numbers: shifts and additions only, the reference for rounded weights."""

from __future__ import annotations

import torch
from torch import Tensor

FRACTION = 16
"""Bits behind the point of a fixed-point number (16.16)."""


def fixed(rows: Tensor) -> Tensor:
    """Numbers below 2^15 as whole multiples of 2^-16."""
    return (rows.double() * 2**FRACTION).round().long()


def shift_add(rows: Tensor, weight: Tensor, least: int) -> Tensor:
    """rows W^T by shifting and adding, exactly.

    Args:
        rows: (R, D), from `fixed`.
        weight: (O, D), each 0 or plus or minus a power of two, from 2^least to 1.
        least: the smallest exponent.

    Returns:
        (R, O), whole multiples of 2^(least - 16).

    Raises:
        ValueError: when a weight is no such power.
    """
    exponent = weight.double().abs().clamp_min(2.0**least).log2().round()
    sign = weight.sign()
    if not torch.equal(sign.double() * torch.exp2(exponent), weight.double()) or bool((exponent > 0).any()):
        raise ValueError(f"weights must be 0 or powers of two from 2^{least} to 1; got others. Round them first.")
    shifted = rows.unsqueeze(1) << (exponent.long() - least)
    return torch.where(sign > 0, shifted, torch.where(sign < 0, -shifted, 0)).sum(-1)
