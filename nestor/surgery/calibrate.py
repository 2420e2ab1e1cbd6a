"""Making up for what narrow tokens leave out, in closed form, from a few pictures.

A narrow token reads a slice, uses a prefix of the hidden units and writes a slice; the mean of all that it leaves out
is known from calibration pictures and goes into its expert's biases; matrices that an expert owns are fitted by least
squares. The nested network and the full one run side by side, layer by layer, so that each fit also takes back the
error of the layers before it. At the end a map for each expert tells, from the channels that a narrow token has, what
the full token looks like.
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

    Sets biases, readout and own matrices of all experts but the last, which stays exact.

    Args:
        nested: E experts; its last expert is `full`.
        full: the same network with one expert, in the same basis and order.
        images: (n, 3, H, W) calibration pictures, all run at once.
        budget: at which tokens are spread over the experts; an expert without a token keeps what it has.
        ridge: draws fitted matrices towards the slices that they were, relative to the mean energy of an input.
    """
    new = copy.deepcopy(nested)
    nest, prefix = new.settings.nest, new.settings.prefix
    tokens = new.embed(images)
    grid = new.embed.cells(images.shape)
    counts = new.plan(grid[0] * grid[1], budget)
    routing = new.route(tokens, counts, grid)
    bands, order = sort(tokens, routing, counts, nest.widths, prefix)
    bands = tuple(replace(band, gate=None) for band in bands)
    whole = tokens.gather(1, order.unsqueeze(-1).expand_as(tokens))
    (target,), _ = sort(whole, None, [sum(counts)], full.settings.nest.widths, prefix)
    for block, exact in zip(new.blocks, full.blocks, strict=True):
        bands, target = _attention(block.attention, exact.attention, bands, target, ridge)
        bands, target = _feedforward(block.mlp, exact.mlp, bands, target, ridge)
    _readout(new, full, bands, target, ridge)
    return new


def _attention(layer: Attention, exact: Attention, bands: Sequence[Band], target: Band, ridge: float):
    inward = project(exact, target)
    for band, wanted in _narrow(layer, bands, inward):
        weight, rows = layer.inward_of(band.expert), normalise(band.rows, band.tail, layer.nest.widths[-1], layer.eps)
        _fit(
            weight, layer.inward_bias[band.expert], rows, wanted[..., : len(weight)], ridge if layer.nest.own else None
        )
    after = target.rows + F.linear(mixed(exact, inward), exact.outward, exact.outward_bias[0])
    return _settle(layer, bands, after), replace(target, rows=after)


def _feedforward(layer: FeedForward, exact: FeedForward, bands: Sequence[Band], target: Band, ridge: float):
    nest, D = layer.nest, layer.nest.widths[-1]
    inward = project(exact, target)
    after = target.rows + F.linear(hidden(exact, inward), exact.outward, exact.outward_bias[0])
    for (band, wanted), (_, goal) in zip(_narrow(layer, bands, inward), _narrow(layer, bands, after), strict=True):
        j, d, h = band.expert, nest.widths[band.expert], layer.fan * nest.hidden[band.expert]
        weight, rows = layer.inward[:h, :d], normalise(band.rows, band.tail, D, layer.eps)
        _fit(weight, layer.inward_bias[j], rows, wanted[..., :h], None)
        if nest.own:
            act = hidden(layer, F.linear(rows, weight, layer.inward_bias[j, :h]))
            _fit(layer.outward_of(j), layer.outward_bias[j], act, goal[..., :d] - band.rows, ridge)
    return _settle(layer, bands, after), replace(target, rows=after)


def _fit(weight: Tensor, bias: Tensor, rows: Tensor, wanted: Tensor, ridge: float | None) -> None:
    """Fit, in place, `rows @ weight^T + bias` to what is wanted; without a ridge only the bias.

    Least squares with the weights drawn towards what they are, by `ridge` times the mean energy of an input.

    Args:
        weight, bias: (out, in) and at least (out,).
        rows: (B, n, in).
        wanted: (B, n, out).
    """
    known, goal = rows.flatten(0, 1).double(), wanted.flatten(0, 1).double()
    if ridge is not None:
        rest = goal - known @ weight.double().T
        centred = known - known.mean(0)
        gram = centred.T @ centred
        strength = ridge * gram.diagonal().mean()
        eye = torch.eye(len(gram), dtype=gram.dtype)
        weight += torch.linalg.solve(gram + strength * eye, centred.T @ (rest - rest.mean(0))).T.to(weight.dtype)
    bias[: len(weight)] = (goal - known @ weight.double().T).mean(0)


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
        part = wanted[:, start : start + n]
        start += n
        if band.rows.shape[-1] == D:
            continue
        weight = readout.map(j)
        weight.copy_(full.readout.weight[:, : weight.shape[1]])
        if weight.shape[1]:
            _fit(weight, readout.bias[j], readout.normal(band), part, ridge)
        else:
            readout.bias[j] = part.mean((0, 1))


def _narrow(layer: Attention | FeedForward, bands: Sequence[Band], tokens: Tensor):
    """Bands narrower than the stream, skips left out, each with its part of the tokens (B, T, ...)."""
    start = 0
    for band in bands:
        n, d = band.rows.shape[1], layer.nest.widths[band.expert]
        if 0 < d < layer.nest.widths[-1]:
            yield band, tokens[:, start : start + n]
        start += n
