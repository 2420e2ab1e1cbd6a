"""Pretrained weights into a network composed of blocks, with whatever in the place of its feed-forward parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nestor.experts.feedforward import SWIGLU, Activation, FeedForward
from nestor.layers.block import Block, Dense, SelfAttention
from nestor.models.composed import Composed, ComposedSettings
from nestor.ops.linear import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nestor.layers.mixture import Mixture
    from nestor.models.plain import Plain


def composed(
    plain: Plain,
    labels: Sequence[str],
    layer: Callable[[int, FeedForward], Mixture | Dense] = lambda depth, one: Dense(one),
    *,
    depth: int | None = None,
    frozen: int = 0,
) -> Composed:
    """A network with these pretrained weights and a fresh head of zeros on class token and mean patch.

    LayerScale is folded into what each sublayer writes. What `layer` returns may hold the network that it is given.

    Args:
        plain: from `nestor.models.pretrained.read`.
        labels: names of the classes.
        layer: from the number of a block and its feed-forward part to what stands there.
        depth: how many blocks to take, the first ones; all unless given.
        frozen: how many blocks, the first ones, do not learn; the embedding then neither.

    Raises:
        ValueError: when the family has no class token or a norm after its embedding, or depth fits not.
    """
    s, t = plain.settings, plain.tensors
    depth = s.depth if depth is None else depth
    if s.prefix < 1 or "embed.norm.weight" in t or not 1 <= depth <= s.depth:
        raise ValueError(
            f"a composed network needs a class token, no norm after the embedding, and 1 to {s.depth} blocks; got "
            f"prefix {s.prefix}, {'a' if 'embed.norm.weight' in t else 'no'} norm and {depth} blocks. Use fold."
        )
    settings = ComposedSettings(
        width=s.width,
        patch=s.patch,
        grid=s.grid,
        classes=len(labels),
        labels=tuple(labels),
        prefix=s.prefix,
        head="class_mean",
        eps=s.eps,
        antialias=s.interpolation == "bicubic_antialias",
        mean=s.mean,
        std=s.std,
    )
    fan1 = Activation(fan=1, apply=ACTIVATIONS[s.activation])
    activation = SWIGLU if s.activation == "swiglu" else fan1
    blocks = [_block(i, plain, activation, layer) for i in range(depth)]
    model = Composed(settings, blocks)
    with torch.no_grad():
        model.embed.weight.copy_(t["embed.weight"].flatten(1))
        model.embed.bias.copy_(t["embed.bias"])
        model.embed.prefix.copy_(t["embed.prefix"] + t["embed.prefix_position"])
        model.embed.position.copy_(t["embed.position"])
        _fill(model.norm, t["norm.weight"], t["norm.bias"])
    for part in (model.embed, *model.chain[:frozen]) if frozen else ():
        part.requires_grad_(False)
    return model


def _block(i: int, plain: Plain, activation: Activation, layer: Callable[[int, FeedForward], Mixture | Dense]) -> Block:
    s, t, at = plain.settings, plain.tensors, f"blocks.{i}"
    one = torch.ones(s.width)
    first, second = t.get(f"{at}.scale1", one), t.get(f"{at}.scale2", one)
    mlp = FeedForward.of(
        t[f"{at}.mlp.in.weight"][None],
        (t[f"{at}.mlp.out.weight"] * second.unsqueeze(1))[None],
        t[f"{at}.mlp.in.bias"][None],
        (t[f"{at}.mlp.out.bias"] * second)[None],
        activation=activation,
    )
    block = Block(s.width, SelfAttention(s.width, s.heads), layer(i, mlp), eps=s.eps)
    _fill(block.norm1, t[f"{at}.norm1.weight"], t[f"{at}.norm1.bias"])
    _fill(block.norm2, t[f"{at}.norm2.weight"], t[f"{at}.norm2.bias"])
    _fill(block.attention.inward, t[f"{at}.attention.qkv.weight"], t[f"{at}.attention.qkv.bias"])
    out = t[f"{at}.attention.out.weight"] * first.unsqueeze(1)
    _fill(block.attention.outward, out, t[f"{at}.attention.out.bias"] * first)
    return block


@torch.no_grad()
def _fill(part: nn.LayerNorm | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    part.weight.copy_(weight)
    part.bias.copy_(bias)
