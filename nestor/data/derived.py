"""What can be asked of any grey picture and answered from its own pixels: where it is bright, its edges, its shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.data.pictures import Pictures

SHAPE = ("across", "down", "width", "height", "cosine of twice the angle", "sine of twice the angle", "area")
_EPS = 1e-6


def grey(pictures: Pictures) -> Tensor:
    """(N, H, W) in [0, 1]: the first channel of every picture.

    Raises:
        ValueError: there is no picture.
    """
    if not len(pictures):
        raise ValueError("there are no pictures to take the pixels of. Load at least one.")
    return torch.stack([pictures.pixels(i)[0] for i in range(len(pictures))]).float() / 255


def scattered(pictures: Tensor, side: int, *, seed: int = 0) -> Tensor:
    """Each picture (N, H, W) at a random place of a black square of this side: (N, side, side).

    Raises:
        ValueError: the square is smaller than the pictures.
    """
    N, H, W = pictures.shape
    if side < max(H, W):
        raise ValueError(f"a canvas must be at least as large as its pictures, {H} x {W}; got {side}. Enlarge it.")
    canvas = pictures.new_zeros(N, side, side)
    places = np.random.default_rng(seed).integers(0, (side - H + 1, side - W + 1), (N, 2)).tolist()
    for item, (down, across) in enumerate(places):
        canvas[item, down : down + H, across : across + W] = pictures[item]
    return canvas


def foreground(pictures: Tensor, *, least: float = 0.1) -> Tensor:
    """1 where a picture (N, H, W) is at least so bright, else 0."""
    return (pictures >= least).to(pictures.dtype)


def gradients(pictures: Tensor) -> Tensor:
    """Sobel's differences across and down of (N, H, W): (N, 2, H, W), black all around."""
    across = pictures.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    return F.conv2d(pictures.unsqueeze(1), torch.stack([across, across.T]).unsqueeze(1), padding=1)


def edges(pictures: Tensor) -> Tensor:
    """How fast brightness changes, (N, H, W): the length of Sobel's differences."""
    return gradients(pictures).square().sum(1).sqrt()


def directions(pictures: Tensor, *, least: float = 0.1) -> Tensor:
    """Which way brightness rises, (N, 2, H, W): unit vectors, zero where it changes by less than `least`."""
    change = gradients(pictures)
    length = change.square().sum(1, keepdim=True).sqrt()
    return torch.where(length >= least, change / length.clamp_min(_EPS), 0.0)


def shape(pictures: Tensor) -> Tensor:
    """Seven numbers of what is bright in (N, H, W), by SHAPE: its centre, extents and principal axis, and its area.

    Lengths are in units of the picture's side, from moments of brightness; an extent is twice a standard deviation.
    A black picture lies in the middle and has no extent.
    """
    _, H, W = pictures.shape
    mass = pictures.sum((1, 2)).clamp_min(_EPS)
    empty = (pictures.sum((1, 2)) < _EPS).to(pictures.dtype)
    down, across = (torch.arange(n, device=pictures.device, dtype=pictures.dtype) / max(1, n - 1) for n in (H, W))
    x = ((pictures.sum(1) * across).sum(-1)) / mass + 0.5 * empty
    y = ((pictures.sum(2) * down).sum(-1)) / mass + 0.5 * empty
    dx, dy = across - x.unsqueeze(1), down - y.unsqueeze(1)
    xx = (pictures.sum(1) * dx.square()).sum(-1) / mass
    yy = (pictures.sum(2) * dy.square()).sum(-1) / mass
    xy = torch.einsum("nhw,nh,nw->n", pictures, dy, dx) / mass
    # The axis has no sign, so that twice its angle is what is certain.
    along, skew = xx - yy, 2 * xy
    length = (along.square() + skew.square()).sqrt().clamp_min(_EPS)
    parts = (x, y, 2 * xx.sqrt(), 2 * yy.sqrt(), along / length, skew / length, pictures.mean((1, 2)))
    return torch.stack(parts, 1)
