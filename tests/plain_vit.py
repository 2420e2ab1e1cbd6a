"""An independent, direct vision transformer: what a plain description must compute."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nestor.models.plain import Plain


def plain_forward(plain: Plain, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens after the final norm (B,T,D) and logits (B,classes) or None, of normalised images (B,3,H,W)."""
    stream = plain_stream(plain, images)
    tokens = _norm(plain, "norm", stream)
    if not plain.settings.classes:
        return tokens, None
    read = plain_read(plain, images)
    logits = _linear(plain, "head", read)
    if plain.settings.head == "class_distill":
        logits = (logits + _linear(plain, "head_distill", tokens[:, 1])) / 2
    return tokens, logits


def plain_read(plain: Plain, images: Tensor) -> Tensor:
    """What the head reads, (B,D) or (B,2D)."""
    stream = plain_stream(plain, images)
    tokens = _norm(plain, "norm", stream)
    P = plain.settings.prefix
    match plain.settings.head:
        case "class" | "class_distill":
            return tokens[:, 0]
        case "mean":
            return tokens[:, P:].mean(1)
        case "mean_then_norm":
            return _norm(plain, "norm", stream[:, P:].mean(1))
        case "class_mean":
            return torch.cat([tokens[:, 0], tokens[:, P:].mean(1)], dim=1)
        case "attention":
            return _pool(plain, tokens)
        case other:
            raise AssertionError(other)


def plain_stream(plain: Plain, images: Tensor) -> Tensor:
    """The residual stream before the final norm, (B,T,D)."""
    s, w = plain.settings, plain.tensors
    x = F.conv2d(images, w["embed.weight"], w["embed.bias"], stride=s.patch)
    B, D, rows, columns = x.shape
    position = w["embed.position"]
    if (rows, columns) != s.grid:
        position = F.interpolate(
            position.permute(2, 0, 1)[None],
            size=(rows, columns),
            mode="bicubic",
            align_corners=False,
            antialias=s.interpolation == "bicubic_antialias",
        )[0].permute(1, 2, 0)
    patches = x.flatten(2).transpose(1, 2) + position.reshape(rows * columns, D)
    prefix = (w["embed.prefix"] + w["embed.prefix_position"]).expand(B, -1, -1)
    x = torch.cat([prefix, patches], dim=1)
    if "embed.norm.weight" in w:
        x = _norm(plain, "embed.norm", x)
    for i in range(s.depth):
        block = f"blocks.{i}"
        x = x + _attention(plain, block, _norm(plain, f"{block}.norm1", x)) * w.get(f"{block}.scale1", 1)
        x = x + _mlp(plain, f"{block}.mlp", _norm(plain, f"{block}.norm2", x)) * w.get(f"{block}.scale2", 1)
    return x


def _attention(plain: Plain, block: str, x: Tensor) -> Tensor:
    q, k, v = (_heads(plain, part) for part in _linear(plain, f"{block}.attention.qkv", x).chunk(3, dim=-1))
    return _linear(plain, f"{block}.attention.out", _attend(q, k, v))


def _pool(plain: Plain, tokens: Tensor) -> Tensor:
    w = plain.tensors
    weights = zip(w["pool.attention.qkv.weight"].chunk(3), w["pool.attention.qkv.bias"].chunk(3), strict=True)
    query = w["pool.query"].expand(len(tokens), 1, -1)
    inputs = (query, tokens, tokens)
    q, k, v = (_heads(plain, F.linear(x, *pair)) for x, pair in zip(inputs, weights, strict=True))
    y = _linear(plain, "pool.attention.out", _attend(q, k, v))
    return (y + _mlp(plain, "pool.mlp", _norm(plain, "pool.norm", y)))[:, 0]


def _heads(plain: Plain, x: Tensor) -> Tensor:
    return x.unflatten(-1, (plain.settings.heads, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def _mlp(plain: Plain, name: str, x: Tensor) -> Tensor:
    hidden = _linear(plain, f"{name}.in", x)
    match plain.settings.activation:
        case "gelu":
            hidden = F.gelu(hidden)
        case "gelu_tanh":
            hidden = F.gelu(hidden, approximate="tanh")
        case "quick_gelu":
            hidden = hidden * torch.sigmoid(1.702 * hidden)
        case "swiglu":
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
    return _linear(plain, f"{name}.out", hidden)


def _norm(plain: Plain, name: str, x: Tensor) -> Tensor:
    w = plain.tensors
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], plain.settings.eps)


def _linear(plain: Plain, name: str, x: Tensor) -> Tensor:
    return F.linear(x, plain.tensors[f"{name}.weight"], plain.tensors[f"{name}.bias"])


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


@torch.no_grad()
def randomise(module: torch.nn.Module) -> None:
    """Give every parameter, norms, biases and scales included, a value that would show if it went astray."""
    for name, parameter in module.named_parameters():
        spread = torch.randn_like(parameter) * 0.2
        is_gain = parameter.ndim == 1 and ("weight" in name or "lambda" in name or "gamma" in name)
        parameter.copy_(spread + 1 if is_gain else spread)
