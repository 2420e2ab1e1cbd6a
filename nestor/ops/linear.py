"""Linear layers and what follows them, in one pass over memory where the machine has that ready.

torch's own linear layer writes its bias into the answer before it multiplies, and an activation or a sum reads the
answer once more. In bfloat16, where products are cheap, that costs much of a layer's time on a CPU; oneDNN does all in
one go. In single precision MKL's products are so much faster that the plain way wins.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    # Gate and value rows alternate, so that the first h units are the first 2h rows.
    "swiglu": lambda x: F.silu(x[..., 0::2]) * x[..., 1::2],
}
_READY = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
# What oneDNN calls them.
_FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


def rows_per_unit(activation: str) -> int:
    """How many rows of the inward weight make one hidden unit."""
    return 2 if activation == "swiglu" else 1


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b: (..., D), (H, D) and (H,) -> (..., H)."""
    packed = _packed(x, weight, bias)
    if packed is None:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def activated(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """act(x W^T + b): (..., D), (H, D) and (H,) -> (..., H), or half as many for a gated activation."""
    packed = _packed(x, weight, bias) if activation in _FUSED else None
    if packed is None:
        return ACTIVATIONS[activation](linear(x, weight, bias))
    name, algorithm = _FUSED[activation]
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], algorithm)


def added(x: Tensor, weight: Tensor, bias: Tensor, onto: Tensor) -> Tensor:
    """onto + x W^T + b: (..., D), (H, D), (H,) and (..., H) -> (..., H)."""
    packed = _packed(x, weight, bias)
    if packed is None or onto.dtype != x.dtype:
        return onto + F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise.binary(x, onto, packed, bias, "add")


def _packed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor | None:
    """The weight as oneDNN wants it; None where the plain way is the faster or the only one."""
    parts = (x, weight, bias)
    if any(part.device.type != "cpu" or part.dtype != torch.bfloat16 for part in parts) or not x.numel():
        return None
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return None
    if (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or not (_READY and torch.backends.mkldnn.enabled)
    ):
        return None
    if weight.is_contiguous():
        return weight
    # oneDNN's fused layer crawls through a strided weight, and the copy of a slice pays only where many rows share it.
    return weight.contiguous() if x.numel() > 4 * x.shape[-1] ** 2 else None
