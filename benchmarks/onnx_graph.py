"""A plain vision transformer as an ONNX graph, written the way ONNX Runtime's own optimiser would leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.models.plain import Plain

FUSED = "com.microsoft"


class Graph:
    """Collects nodes and weights; every method adds one node and gives the name of what it computes."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self.helper, self.numpy_helper = helper, numpy_helper
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def node(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """One operator; of several outputs the first, the others are called `NAME_1`, `NAME_2`."""
        name = f"{kind}_{len(self.nodes)}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(self.helper.make_node(kind, inputs, names, name, domain=domain, **attributes))
        return name

    def weight(self, tensor: Tensor) -> str:
        """A constant."""
        name = f"weight_{len(self.weights)}"
        self.weights.append(self.numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))
        return name

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """x W^T + b for W (out, in)."""
        return self.node("Add", self.node("MatMul", x, self.weight(weight.T)), self.weight(bias))


def vit_graph(plain: Plain, batch: int) -> bytes:
    """An ONNX model, `images` (batch, 3, H, W) -> `logits` (batch, classes), in single precision.

    Attention, bias + GELU and residual + norm are ONNX Runtime's fused operators.

    Raises:
        ValueError: when the network is not the ordinary kind that the benchmarks compare: class token, GELU, a head.
        ImportError: onnx is missing.
    """
    s, w = plain.settings, plain.tensors
    if s.activation != "gelu" or s.head != "class" or not s.classes or "embed.norm.weight" in w:
        raise ValueError(
            "an ONNX graph is written for GELU and a head on the class token; "
            f"got {s.activation}, {s.head} and {s.classes} classes."
        )
    g = Graph()
    cut = g.node("Conv", "images", g.weight(w["embed.weight"]), g.weight(w["embed.bias"]), strides=[s.patch, s.patch])
    shape = g.weight(_whole(batch, s.width, s.grid[0] * s.grid[1]))
    patches = g.node("Transpose", g.node("Reshape", cut, shape), perm=[0, 2, 1])
    patches = g.node("Add", patches, g.weight(w["embed.position"].flatten(0, 1)))
    prefix = (w["embed.prefix"] + w["embed.prefix_position"]).expand(batch, -1, -1)
    x = g.node("Concat", g.weight(prefix), patches, axis=1)
    u = g.node("LayerNormalization", x, *_norm(g, w, "blocks.0.norm1"), axis=-1, epsilon=s.eps)
    for i in range(s.depth):
        name = f"blocks.{i}"
        qkv = g.linear(u, w[f"{name}.attention.qkv.weight"], w[f"{name}.attention.qkv.bias"])
        q = g.node("Split", qkv, outputs=3, axis=-1, num_outputs=3)
        mixed = g.node("MultiHeadAttention", q, f"{q}_1", f"{q}_2", domain=FUSED, num_heads=s.heads)
        step = g.linear(mixed, *_scaled(w, f"{name}.attention.out", f"{name}.scale1"))
        x, u = _add(g, x, step, _norm(g, w, f"{name}.norm2"), s.eps)
        up = g.node("MatMul", u, g.weight(w[f"{name}.mlp.in.weight"].T))
        act = g.node("BiasGelu", up, g.weight(w[f"{name}.mlp.in.bias"]), domain=FUSED)
        step = g.linear(act, *_scaled(w, f"{name}.mlp.out", f"{name}.scale2"))
        following = f"blocks.{i + 1}.norm1" if i + 1 < s.depth else "norm"
        x, u = _add(g, x, step, _norm(g, w, following), s.eps)
    token = g.node("Gather", u, g.weight(_whole(0).squeeze(0)), axis=1)
    logits = g.linear(token, w["head.weight"], w["head.bias"])
    return _model(g, logits, (batch, 3, s.grid[0] * s.patch, s.grid[1] * s.patch), (batch, s.classes))


def _model(g: Graph, logits: str, images: tuple[int, ...], out: tuple[int, ...]) -> bytes:
    h = g.helper
    from onnx import TensorProto

    g.nodes.append(h.make_node("Identity", [logits], ["logits"]))
    ends = [h.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("images", images), ("logits", out))]
    graph = h.make_graph(g.nodes, "vit", ends[:1], ends[1:], g.weights)
    versions = [h.make_opsetid("", 18), h.make_opsetid(FUSED, 1)]
    return h.make_model(graph, opset_imports=versions, ir_version=9).SerializeToString()


def _norm(g: Graph, w: Any, name: str) -> tuple[str, str]:
    return g.weight(w[f"{name}.weight"]), g.weight(w[f"{name}.bias"])


def _scaled(w: Any, name: str, scale: str) -> tuple[Tensor, Tensor]:
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    return (weight, bias) if scale not in w else (w[scale].unsqueeze(1) * weight, w[scale] * bias)


def _add(g: Graph, x: str, step: str, norm: tuple[str, str], eps: float) -> tuple[str, str]:
    """x + step, and its norm."""
    u = g.node("SkipLayerNormalization", x, step, *norm, outputs=4, domain=FUSED, epsilon=eps)
    return f"{u}_3", u


def _whole(*numbers: int) -> Tensor:
    import torch

    return torch.tensor(numbers, dtype=torch.int64)
