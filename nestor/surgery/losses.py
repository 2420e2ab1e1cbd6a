"""What each token loses by being narrow, measured once, so that the router can predict it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestor.ops.bands import normalise
from nestor.routing.score import ExpectedLoss, TrailingEnergy
from nestor.surgery.basis import project, streams

if TYPE_CHECKING:
    from nestor.models.vit import ViT


@torch.no_grad()
def calibrate_router(model: ViT, full: ViT, images: Tensor) -> None:
    """Fit, in place, what a nested network's router knows to measurements on calibration pictures (n, 3, H, W).

    Args:
        model: E experts.
        full: the same network with one expert, in the same basis.
        images: calibration pictures.
    """
    if model.router is None:
        return
    patches = model.embed(images)[:, model.settings.prefix :]
    for part in model.router.modules():
        if isinstance(part, TrailingEnergy):
            part.calibrate(patches)
        elif isinstance(part, ExpectedLoss):
            part.calibrate(patches, narrow_losses(full, images, part.start))


@torch.no_grad()
def narrow_losses(full: ViT, images: Tensor, width: int, ridge: float = 0.01) -> Tensor:
    """How badly each patch's keys, values and queries follow from its first channels, all layers together.

    In each layer the full network's keys, values and queries are predicted by least squares from the first `width`
    channels of the normalised stream; the squared errors of the three, each over its mean, are summed.

    Args:
        full: a network with one expert, in the basis that it is to be cut in.
        images: (n, 3, H, W).
        width: channels that a narrow token has.
        ridge: of the least squares, relative to the mean energy of a channel.

    Returns:
        (n, patches).
    """
    D, prefix = full.settings.nest.widths[-1], full.settings.prefix
    total: Tensor | None = None
    for i, (band, layer) in enumerate(streams(full, images)):
        if i % 2:
            continue
        wanted = project(layer, band)[:, prefix:]
        rows = normalise(band.rows, band.tail, D, full.settings.eps)[:, prefix:, :width]
        error = _residual(rows, wanted, ridge).square().unflatten(-1, (3, D)).sum(-1)
        share = (error / error.mean((0, 1)).clamp_min(1e-12)).sum(-1)
        total = share if total is None else total + share
    assert total is not None
    return total


def _residual(rows: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    known, goal = (part - part.mean((0, 1)) for part in (rows.double(), wanted.double()))
    flat = known.flatten(0, 1)
    gram = flat.T @ flat
    eye = torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * eye, flat.T @ goal.flatten(0, 1))
    return (goal - known @ weight).float()
