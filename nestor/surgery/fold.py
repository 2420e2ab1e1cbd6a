"""Plain weights into our own network, exactly: every norm's parameters move into the weights beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestor.layers.nested import Nest
from nestor.models.vit import ViT, ViTSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nestor.models.plain import Plain, PlainSettings


def fold(plain: Plain) -> ViT:
    """An ordinary vision transformer (one expert) that computes what the plain description computes.

    Each norm's scale and shift go into the projections that read it and LayerScale into those that write; the writers
    are centred, so that the stream has mean zero and LayerNorm becomes x / rms(x), which commutes with any rotation of
    the stream. Computed in double precision; the result is single.

    Returns:
        A new ViT; its tokens and logits equal the original's up to rounding.
    """
    source = {name: tensor.double() for name, tensor in plain.tensors.items()}
    s = plain.settings
    target = _embedding(source) | _readout(source) | _head(source, s)
    for i in range(s.depth):
        block = {name.removeprefix(f"blocks.{i}."): t for name, t in source.items() if name.startswith(f"blocks.{i}.")}
        target |= {f"blocks.{i}.{name}": tensor for name, tensor in _block(block, s).items()}
    model = ViT(_settings(s, embed_norm="embed.norm.weight" in source))
    model.load_state_dict({name: tensor.float() for name, tensor in target.items()})
    return model.eval()


def _settings(s: PlainSettings, *, embed_norm: bool) -> ViTSettings:
    return ViTSettings(
        nest=Nest(widths=(s.width,), hidden=(s.hidden,), heads=(s.heads,)),
        depth=s.depth,
        patch=s.patch,
        grid=s.grid,
        prefix=s.prefix,
        activation=s.activation,
        eps=s.eps,
        antialias=s.interpolation == "bicubic_antialias",
        embed_norm=embed_norm,
        classes=s.classes,
        labels=s.labels,
        head=s.head,
        scores=(),
        mean=s.mean,
        std=s.std,
        source=s.source,
        nominal=s.patch * s.grid[0],
    )


def _centre(tensor: Tensor, dim: int = 0) -> Tensor:
    return tensor - tensor.mean(dim, keepdim=True)


def _embedding(w: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {
        "embed.weight": w["embed.weight"].flatten(1),
        "embed.bias": w["embed.bias"],
        "embed.prefix": w["embed.prefix"] + w["embed.prefix_position"],
        "embed.position": w["embed.position"],
    }
    if "embed.norm.weight" in w:
        scale, shift = w["embed.norm.weight"], w["embed.norm.bias"]
        return result | {"embed.turn.weight": _centre(torch.diag(scale)), "embed.turn.bias": _centre(shift)}
    # The width is the first dimension of weight and bias, the last of prefix and position.
    return {name: _centre(t, 0 if name in ("embed.weight", "embed.bias") else -1) for name, t in result.items()}


def _block(w: Mapping[str, Tensor], s: PlainSettings) -> dict[str, Tensor]:
    one = torch.ones(s.width, dtype=torch.float64)
    scale1, scale2 = w.get("scale1", one), w.get("scale2", one)
    inward, inward_bias = _reader(
        w["attention.qkv.weight"], w["attention.qkv.bias"], w["norm1.weight"], w["norm1.bias"]
    )
    up, up_bias = _reader(w["mlp.in.weight"], w["mlp.in.bias"], w["norm2.weight"], w["norm2.bias"])
    if s.activation == "swiglu":
        up, up_bias = (torch.stack(part.chunk(2), 1).flatten(0, 1) for part in (up, up_bias))
    D = s.width
    return {
        "attention.inward": inward.roll(-D, 0),
        "attention.inward_bias": inward_bias.roll(-D, 0).unsqueeze(0),
        "attention.outward": _centre(scale1.unsqueeze(1) * w["attention.out.weight"]),
        "attention.outward_bias": _centre(scale1 * w["attention.out.bias"]).unsqueeze(0),
        "mlp.inward": up,
        "mlp.inward_bias": up_bias.unsqueeze(0),
        "mlp.outward": _centre(scale2.unsqueeze(1) * w["mlp.out.weight"]),
        "mlp.outward_bias": _centre(scale2 * w["mlp.out.bias"]).unsqueeze(0),
    }


def _reader(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return weight * scale, bias + weight @ shift


def _readout(w: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"readout.weight": torch.diag(w["norm.weight"]), "readout.bias": w["norm.bias"].unsqueeze(0)}


def _head(w: Mapping[str, Tensor], s: PlainSettings) -> dict[str, Tensor]:
    if not s.classes:
        return {}
    names = {"head": "head.linear"}
    if s.head == "class_distill":
        names["head_distill"] = "head.distill"
    result = {f"{ours}.{kind}": w[f"{theirs}.{kind}"] for theirs, ours in names.items() for kind in ("weight", "bias")}
    if s.head == "attention":
        parts = {
            "attention.qkv": "inward",
            "attention.out": "outward",
            "norm": "norm",
            "mlp.in": "up",
            "mlp.out": "down",
        }
        result |= {
            f"head.pool.{o}.{kind}": w[f"pool.{t}.{kind}"] for t, o in parts.items() for kind in ("weight", "bias")
        }
        result["head.pool.query"] = w["pool.query"]
        if s.activation == "swiglu":
            for kind in ("weight", "bias"):
                result[f"head.pool.up.{kind}"] = torch.stack(w[f"pool.mlp.in.{kind}"].chunk(2), 1).flatten(0, 1)
    return result
