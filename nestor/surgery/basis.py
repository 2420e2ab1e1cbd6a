"""A good order for everything that experts take a prefix of: channels, hidden units, heads."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.layers.nested import Attention
from nestor.ops.attention import attend
from nestor.ops.bands import Band, normalise, sort
from nestor.ops.linear import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nestor.layers.nested import FeedForward
    from nestor.models.vit import ViT


@torch.no_grad()
def components(model: ViT, images: Tensor, batch: int = 32) -> Tensor:
    """Principal components of what the sublayers read, all layers together.

    Args:
        model: a network with one expert.
        images: (n, 3, H, W) calibration pictures.
        batch: how many pictures are run at once.

    Returns:
        (D, D), orthogonal, double precision: columns by falling energy.
    """
    D = model.settings.nest.widths[-1]
    moment = torch.zeros(D, D, dtype=torch.float64)
    for part in images.split(batch):
        for band, _ in streams(model, part):
            rows = normalise(band.rows, band.tail, D, model.settings.eps).flatten(0, 1)
            moment += (rows.T @ rows).double()
    return torch.linalg.eigh(moment).eigenvectors.flip(1)


def streams(model: ViT, images: Tensor) -> Iterator[tuple[Band, Attention | FeedForward]]:
    """What each sublayer of a network with one expert reads, as one band of (B, T, D), with the sublayer, in order."""
    patches = _patches(model, images)
    (band,), _ = sort(model.embed(images), None, [patches], model.settings.nest.widths, model.settings.prefix)
    for block in model.blocks:
        yield band, block.attention
        (band,) = block.attention([band])
        yield band, block.mlp
        (band,) = block.mlp([band])


@torch.no_grad()
def rotate(model: ViT, turn: Tensor) -> ViT:
    """The same network with its stream in another basis.

    Args:
        model: a network with one expert.
        turn: (D, D), orthogonal, columns are the new basis.

    Returns:
        A new network that computes the same, up to rounding.

    Raises:
        ValueError: when the basis is not orthogonal or not of the model's width.
    """
    D, turn = model.settings.nest.widths[-1], turn.double()
    if turn.shape != (D, D) or not torch.allclose(turn.T @ turn, torch.eye(D, dtype=turn.dtype), atol=1e-6):
        raise ValueError(
            f"the basis must be {D} orthonormal columns of {D}; got {tuple(turn.shape)}, or columns that are not. "
            "Take nestor.surgery.basis.components."
        )
    new = copy.deepcopy(model)

    def read(weight: Tensor) -> None:
        weight.copy_(weight.double() @ turn)

    def write(weight: Tensor) -> None:
        weight.copy_(turn.T @ weight.double())

    embed = new.embed
    if embed.turn is None:
        write(embed.weight)
        write(embed.bias)
        read(embed.prefix)
        read(embed.position)
    else:
        write(embed.turn.weight)
        write(embed.turn.bias)
    for block in new.blocks:
        for layer in (block.attention, block.mlp):
            read(layer.inward)
            write(layer.outward)
            read(layer.outward_bias)
    read(new.readout.weight)
    return new


@torch.no_grad()
def by_importance(model: ViT, images: Tensor, batch: int = 32) -> ViT:
    """The same network with hidden units and heads in falling order of the energy that they write.

    Units by E[act^2] * |w_out|^2; heads by the energy of their part of attention's answer.

    Args:
        model: a network with one expert.
        images: (n, 3, H, W) calibration pictures.
        batch: how many pictures are run at once.
    """
    s = model.settings
    units = torch.zeros(s.depth, s.nest.hidden[0], dtype=torch.float64)
    heads = torch.zeros(s.depth, s.nest.heads[0], dtype=torch.float64)
    for part in images.split(batch):
        for i, (band, layer) in enumerate(streams(model, part)):
            if isinstance(layer, Attention):
                heads[i // 2] += _head_energy(layer, band)
            else:
                units[i // 2] += _unit_energy(layer, band)
    new = copy.deepcopy(model)
    for block, unit, head in zip(new.blocks, units, heads, strict=True):
        _reorder_units(block.mlp, unit.argsort(descending=True, stable=True))
        _reorder_heads(block.attention, head.argsort(descending=True, stable=True))
    return new


def _patches(model: ViT, images: Tensor) -> int:
    rows, columns = model.embed.cells(images.shape)
    return rows * columns


def mixed(layer: Attention, inward: Tensor) -> Tensor:
    """Attention's answer before the outward projection, (B, T, D), of full keys, values and queries (B, T, 3D)."""
    heads, D = layer.nest.heads[-1], layer.nest.widths[-1]
    key, value, query = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in inward.split(D, -1))
    return attend(query, key, value).transpose(1, 2).flatten(2)


def hidden(layer: FeedForward, inward: Tensor) -> Tensor:
    """Hidden activations (B, T, H) of what the inward projection gives."""
    return ACTIVATIONS[layer.activation](inward)


def project(layer: Attention | FeedForward, band: Band) -> Tensor:
    """What the inward projection of a layer with one expert gives for a band."""
    rows = normalise(band.rows, band.tail, layer.nest.widths[-1], layer.eps)
    return F.linear(rows, layer.inward, layer.inward_bias[0])


def _head_energy(layer: Attention, band: Band) -> Tensor:
    D, heads = layer.nest.widths[-1], layer.nest.heads[-1]
    rows = mixed(layer, project(layer, band)).flatten(0, 1).unflatten(-1, (heads, -1))
    gram = torch.einsum("rhi,rhj->hij", rows, rows).double()
    weight = layer.outward.double().view(D, heads, -1)
    return torch.einsum("dhi,hij,dhj->h", weight, gram, weight)


def _unit_energy(layer: FeedForward, band: Band) -> Tensor:
    act = hidden(layer, project(layer, band)).flatten(0, 1).double()
    return act.square().sum(0) * layer.outward.double().square().sum(0)


def _reorder_units(layer: FeedForward, order: Tensor) -> None:
    rows = (order.unsqueeze(1) * layer.fan + torch.arange(layer.fan)).flatten()
    layer.inward.copy_(layer.inward[rows])
    layer.inward_bias.copy_(layer.inward_bias[:, rows])
    layer.outward.copy_(layer.outward[:, order])


def _reorder_heads(layer: Attention, order: Tensor) -> None:
    D, heads = layer.nest.widths[-1], layer.nest.heads[-1]
    channels = (order.unsqueeze(1) * (D // heads) + torch.arange(D // heads)).flatten()
    rows = torch.cat([channels + part * D for part in range(3)])
    layer.inward.copy_(layer.inward[rows])
    layer.inward_bias.copy_(layer.inward_bias[:, rows])
    layer.outward.copy_(layer.outward[:, channels])
