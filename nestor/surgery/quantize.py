"""A network in eight-bit numbers, by what a few pictures show of the activations."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from nestor.layers.int8 import Int8Attention, Int8Block, Int8FeedForward
from nestor.layers.nested import Attention
from nestor.ops.bands import normalise, sort
from nestor.ops.int8 import Product, Reading, fitted, ready
from nestor.ops.portable import Portable
from nestor.ops.thin import thin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nestor.layers.nested import FeedForward, NestedBlock
    from nestor.models.vit import ViT
    from nestor.ops.bands import Band

    Calls = Sequence[Sequence[Band]]
    # Of one product of every expert, of the products of one block, of all blocks.
    Experts = Mapping[int, Reading]
    Sites = Mapping[str, Experts]
    Readings = Sequence[Sites]

_WAYS = "inward", "outward"


def quantize(model: ViT, images: Tensor) -> ViT:
    """A copy of a network whose blocks multiply eight-bit numbers: faster on CPUs, at every budget, and nearly as good.

    Weights are rounded row by row; what each product reads is rounded between bounds that are known in advance, so
    that no answer depends on what else is in its batch. Embedding, attention's own products, readout and head stay as
    they are, in single precision or bfloat16.

    Args:
        model: a network on the CPU, of one expert or several; it is not changed.
        images: (n, 3, H, W) pictures to calibrate on, normalised; 32 are plenty.

    Returns:
        A network to run, not to train or save.

    Raises:
        ValueError: when the network is not on the CPU, the CPU or torch has no such products, or the pictures do not
            fit the patches.
    """
    return quantized(model, measured(model, images))


@torch.no_grad()
def measured(model: ViT, images: Tensor) -> Readings:
    """How everything that the blocks multiply is to be rounded, as `quantize` finds it.

    Block by block: what the blocks before make of the pictures is rounded already.

    Raises:
        ValueError: as in `quantize`.
    """
    _check(model)
    # Routers may be noisy while they learn.
    model = copy.deepcopy(model).eval() if model.training else model
    rows, columns = model.cells(images.shape)
    plans = _plans(rows * columns, model.settings.nest.widths)
    calls: Calls = [_start(model, images.to(model.embed.weight), plan) for plan in plans]
    found = []
    for number, block in enumerate(model.blocks):
        calls = [_thinned(model, bands, plan, number) for bands, plan in zip(calls, plans, strict=True)]
        sites = _sites(block, calls)
        rounded = _block(block, sites, Product)
        calls = [rounded(bands) for bands in calls]
        found.append(sites)
    return found


@torch.no_grad()
def quantized(model: ViT, readings: Readings) -> ViT:
    """A copy of a network as `quantize` makes it, by what `measured` found.

    Raises:
        ValueError: as in `quantize`, and when the readings are of another network.
    """
    _check(model)
    return _made(model, readings, Product)


@torch.no_grad()
def portable(model: ViT, readings: Readings) -> ViT:
    """What `quantized` gives, in plain operators that other runtimes can be given; no faster than the network itself.

    Raises:
        ValueError: the readings are of another network.
    """
    return _made(model, readings, Portable)


def _made(model: ViT, readings: Readings, product: type[Product | Portable]) -> ViT:
    if len(readings) != len(model.blocks):
        raise ValueError(
            f"readings must be of a network with {len(model.blocks)} blocks; got {len(readings)}. Measure them again."
        )
    active = {j for j, width in enumerate(model.settings.nest.widths) if width}
    for experts in (experts for sites in readings for experts in sites.values()):
        if experts.keys() != active:
            raise ValueError(
                f"readings must be of experts {sorted(active)}; got {sorted(experts)}. Measure them again."
            )
    new = copy.deepcopy(model).eval()
    made = [_block(block, sites, product) for block, sites in zip(model.blocks, readings, strict=True)]
    new.blocks = cast("Sequence[NestedBlock]", nn.ModuleList(made))
    return new


def _check(model: ViT) -> None:
    if model.embed.weight.device.type != "cpu":
        raise ValueError(f"eight-bit products run on the CPU; this network is on {model.embed.weight.device}.")
    if not ready():
        raise ValueError(
            "eight-bit products need a processor with VNNI or AMX, and a torch with oneDNN; one is missing here. "
            "Run in single precision or bfloat16."
        )


def _plans(patches: int, widths: Sequence[int]) -> list[tuple[int, ...]]:
    """Every expert that is no skip by itself, and all of them with equal shares."""
    experts = len(widths)
    each = patches // experts
    alone = [tuple(patches * (j == i) for j in range(experts)) for i in range(experts) if widths[i]]
    return [*alone, (*(each for _ in widths[1:]), patches - each * (experts - 1))]


def _start(model: ViT, images: Tensor, plan: tuple[int, ...]) -> tuple[Band, ...]:
    tokens = model.embed(images)
    routing = model.route(tokens, plan, model.cells(images.shape))
    bands, _ = sort(tokens, routing, plan, model.settings.nest.widths, model.settings.prefix)
    return bands


def _thinned(model: ViT, bands: Sequence[Band], plan: tuple[int, ...], number: int) -> tuple[Band, ...]:
    counts, last, prefix = model.sizes(plan)[number], model.settings.nest.experts - 1, model.settings.prefix
    return tuple(thin(band, counts[band.expert], prefix if band.expert == last else 0) for band in bands)


def _sites(block: NestedBlock, calls: Calls) -> dict[str, Experts]:
    """How the four products of a block are to be read, each found once those before it are known."""
    sites: dict[str, Experts] = {"attention.inward": _normal(block.attention, calls)}
    begun = _attention(block.attention, sites["attention.inward"], {})
    seen: dict[int, list[Tensor]] = {}
    for bands in calls:
        active = [band for band in bands if begun.inward[band.expert] is not None]
        for band, answer in zip(active, begun.mixed(active), strict=True):
            seen.setdefault(band.expert, []).append(answer)
    sites["attention.outward"] = _alike(seen)
    attention = _attention(block.attention, sites["attention.inward"], sites["attention.outward"])
    calls = [attention(bands) for bands in calls]
    sites["mlp.inward"] = _normal(block.mlp, calls)
    mlp = _feedforward(block.mlp, sites["mlp.inward"], {})
    units: dict[int, list[Tensor]] = {}
    for band in (band for bands in calls for band in bands):
        if mlp.inward[band.expert] is not None:
            units.setdefault(band.expert, []).append(mlp.hidden(band))
    sites["mlp.outward"] = _alike(units)
    return sites


def _normal(layer: Attention | FeedForward, calls: Calls) -> Experts:
    """How each expert reads what the norm gives: every channel by its own reach."""
    read: dict[int, list[Tensor]] = {}
    for band in (band for bands in calls for band in bands):
        if layer.nest.widths[band.expert]:
            rows = normalise(band.rows, band.tail, layer.nest.widths[-1], layer.eps)
            read.setdefault(band.expert, []).append(rows.float().flatten(0, 1))
    return {expert: _reached(torch.cat(parts)) for expert, parts in read.items()}


def _reached(rows: Tensor) -> Reading:
    furthest = rows.abs().amax(0)
    reaches = furthest.clamp_min(1e-6 * float(furthest.max().clamp_min(1e-6)))
    return Reading(steps=fitted(rows / reaches), reaches=reaches)


def _alike(read: Mapping[int, Sequence[Tensor]]) -> Experts:
    """How each expert reads rows whose channels all go about as far."""
    return {
        j: Reading(steps=fitted(torch.cat([part.flatten() for part in parts]).float())) for j, parts in read.items()
    }


def _block(block: NestedBlock, sites: Sites, product: type[Product | Portable]) -> Int8Block:
    read = [sites[f"{layer}.{way}"] for layer in ("attention", "mlp") for way in _WAYS]
    attention = _attention(block.attention, read[0], read[1], product)
    return Int8Block(attention, _feedforward(block.mlp, read[2], read[3], product), block.fan)


def _attention(
    layer: Attention, inward: Experts, outward: Experts, product: type[Product | Portable] = Product
) -> Int8Attention:
    return Int8Attention(
        nest=layer.nest,
        eps=layer.eps,
        inward=_products(layer, "inward", inward, product),
        outward=_products(layer, "outward", outward, product),
    )


def _feedforward(
    layer: FeedForward, inward: Experts, outward: Experts, product: type[Product | Portable] = Product
) -> Int8FeedForward:
    return Int8FeedForward(
        nest=layer.nest,
        eps=layer.eps,
        activation=layer.activation,
        alpha=None if layer.alpha is None else float(layer.alpha.clamp(0, 1)),
        inward=_products(layer, "inward", inward, product),
        outward=_products(layer, "outward", outward, product),
    )


def _products(
    layer: Attention | FeedForward, way: str, read: Experts, product: type[Product | Portable]
) -> list[Product | Portable | None]:
    """Of each expert; None of those that are not read."""
    return [product(*_parts(layer, way, j), read[j]) if j in read else None for j in range(layer.nest.experts)]


def _parts(layer: Attention | FeedForward, way: str, expert: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of an expert's product."""
    nest, d = layer.nest, layer.nest.widths[expert]
    if isinstance(layer, Attention):
        reach = nest.heads[expert] * (nest.widths[-1] // nest.heads[-1])
        weight = layer.inward_of(expert) if way == "inward" else layer.outward[:d, :reach]
    else:
        weight = layer.inward[: layer.fan * nest.hidden[expert], :d] if way == "inward" else layer.outward_of(expert)
    bias = layer.inward_bias if way == "inward" else layer.outward_bias
    return weight, bias[expert, : len(weight)]
