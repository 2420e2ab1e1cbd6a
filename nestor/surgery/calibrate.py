"""Making up for what narrow tokens leave out, in closed form, from a few pictures.

A narrow token reads a slice, uses a prefix of the hidden units and writes a slice; the mean of all that it leaves out
is known from calibration pictures and goes into its expert's biases. The nested network and the full one run side by
side, layer by layer, so that each bias also takes back the mean error of the layers before it. At the end a least
squares map for each expert tells from the channels that a narrow token has what the full token looks like.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.ops.bands import Band, normalise, sort
from nestor.surgery.basis import hidden, mixed, project

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.layers.nested import Attention, FeedForward
    from nestor.models.vit import ViT


@torch.no_grad()
def compensate(nested: ViT, full: ViT, images: Tensor, budget: float, ridge: float = 0.01) -> ViT:
    """A copy of a nested network whose narrow experts give, on average, what the full network gives.

    Sets the biases and the readout of all experts but the last, which stays exact.

    Args:
        nested: E experts; its last expert is `full`.
        full: the same network with one expert, in the same basis and order.
        images: (n, 3, H, W) calibration pictures, all run at once.
        budget: at which tokens are spread over the experts; an expert without a token keeps what it has.
        ridge: shrinks the readout towards the slice of the full one, relative to the mean energy of a channel.
    """
    new = copy.deepcopy(nested)
    nest, prefix = new.settings.nest, new.settings.prefix
    tokens = new.embed(images)
    grid = new.embed.cells(images.shape)
    counts = new.plan(grid[0] * grid[1], budget)
    routing = new._route(tokens, counts, grid)
    bands, order = sort(tokens, routing, counts, nest.widths, prefix)
    bands = tuple(replace(band, gate=None) for band in bands)
    whole = tokens.gather(1, order.unsqueeze(-1).expand_as(tokens))
    (target,), _ = sort(whole, None, [sum(counts)], full.settings.nest.widths, prefix)
    for block, exact in zip(new.blocks, full.blocks, strict=True):
        bands, target = _attention(block.attention, exact.attention, bands, target)
        bands, target = _feedforward(block.mlp, exact.mlp, bands, target)
    _readout(new, full, bands, target, ridge)
    return new


def _attention(layer: Attention, exact: Attention, bands: Sequence[Band], target: Band):
    nest, D = layer.nest, layer.nest.widths[-1]
    inward = project(exact, target)
    for band, wanted in _narrow(layer, bands, inward):
        d, rows = nest.widths[band.expert], 2 * D + nest.heads[band.expert] * (D // nest.heads[-1])
        given = F.linear(normalise(band.rows, band.tail, D, layer.eps), layer.inward[:rows, :d])
        layer.inward_bias[band.expert, :rows] = (wanted[..., :rows] - given).mean((0, 1))
    after = target.rows + F.linear(mixed(exact, inward), exact.outward, exact.outward_bias[0])
    return _settle(layer, bands, after), replace(target, rows=after)


def _feedforward(layer: FeedForward, exact: FeedForward, bands: Sequence[Band], target: Band):
    nest, D = layer.nest, layer.nest.widths[-1]
    inward = project(exact, target)
    for band, wanted in _narrow(layer, bands, inward):
        d, rows = nest.widths[band.expert], layer.fan * nest.hidden[band.expert]
        given = F.linear(normalise(band.rows, band.tail, D, layer.eps), layer.inward[:rows, :d])
        layer.inward_bias[band.expert, :rows] = (wanted[..., :rows] - given).mean((0, 1))
    after = target.rows + F.linear(hidden(exact, inward), exact.outward, exact.outward_bias[0])
    return _settle(layer, bands, after), replace(target, rows=after)


def _settle(layer: Attention | FeedForward, bands: Sequence[Band], after: Tensor) -> tuple[Band, ...]:
    """Set the outward biases so that each narrow band has the mean of the full stream, then take the step."""
    for band, _ in _narrow(layer, bands, after):
        layer.outward_bias[band.expert].zero_()
    stepped = layer(bands)
    result, start = [], 0
    for band in stepped:
        n, d = band.rows.shape[1], layer.nest.widths[band.expert]
        if 0 < d < layer.nest.widths[-1]:
            shift = (after[:, start : start + n, :d] - band.rows).mean((0, 1))
            layer.outward_bias[band.expert, :d] = shift
            band = replace(band, rows=band.rows + shift)
        result.append(band)
        start += n
    return tuple(result)


def _readout(model: ViT, full: ViT, bands: Sequence[Band], target: Band, ridge: float) -> None:
    readout, D = model.readout, model.settings.nest.widths[-1]
    wanted = full.readout.turn(full.readout.normal(target), 0)
    start = 0
    for band in bands:
        n, j = band.rows.shape[1], band.expert
        part = wanted[:, start : start + n].flatten(0, 1).double()
        start += n
        if band.rows.shape[-1] == D:
            continue
        rows = readout.normal(band).flatten(0, 1).double()
        slice_ = full.readout.weight[0][:, : rows.shape[-1]].double()
        rest = part - rows @ slice_.T
        centred, missing = rows - rows.mean(0), rest - rest.mean(0)
        gram = centred.T @ centred
        strength = ridge * gram.diagonal().mean() if len(gram) else 0.0
        change = torch.linalg.solve(gram + strength * torch.eye(len(gram), dtype=torch.float64), centred.T @ missing)
        weight = slice_ + change.T
        readout.weight[j].copy_(weight)
        readout.bias[j].copy_((part - rows @ weight.T).mean(0))


def _narrow(layer: Attention | FeedForward, bands: Sequence[Band], tokens: Tensor):
    """Bands narrower than the stream, skips left out, each with its part of the tokens (B, T, ...)."""
    start = 0
    for band in bands:
        n, d = band.rows.shape[1], layer.nest.widths[band.expert]
        if 0 < d < layer.nest.widths[-1]:
            yield band, tokens[:, start : start + n]
        start += n
