"""The plain, unfolded description of a pretrained vision transformer: one form for every source."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "swiglu")
INTERPOLATIONS = ("bicubic", "bicubic_antialias")
HEADS = ("class", "mean", "mean_then_norm", "class_mean", "class_distill", "attention")


@dataclass(frozen=True, kw_only=True)
class PlainSettings:
    """Everything about a pretrained vision transformer that its tensors do not say.

    `activation`: `gelu` (exact), `gelu_tanh`, `quick_gelu` (x * sigmoid(1.702 x)), or `swiglu`: `mlp.in` then has
    2 * hidden rows, gate first, and the hidden units are silu(gate) * value.

    `interpolation`: how position embeddings are resized to a grid other than `grid` (corners not aligned).

    `head`, what the head (or, at 0 classes, a user) reads of the tokens after the final norm:
    `class`: the first token; `mean`: the mean of the patches; `class_mean`: both, concatenated, class token first;
    `class_distill`: two heads on the first and the second token, whose logits are averaged; `attention`: one query
    attends to all tokens, then a residual MLP (`pool.*`). `mean_then_norm` alone reads the stream before the final
    norm: the mean of the patches, and the norm after it.

    Raises ValueError where a value lies outside its set or the sizes contradict each other.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    grid: tuple[int, int]
    prefix: int
    activation: str
    eps: float
    interpolation: str
    classes: int
    labels: tuple[str, ...]
    head: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self):
        for name, allowed in (("activation", ACTIVATIONS), ("interpolation", INTERPOLATIONS), ("head", HEADS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")
        for name in ("width", "depth", "heads", "hidden", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if min(self.grid) < 1:
            raise ValueError(f"grid must have at least one row and one column; got {self.grid}.")
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width {self.width}; got {self.heads}.")
        if min(self.prefix, self.classes) < 0 or not self.eps > 0:
            raise ValueError(
                "prefix and classes must not be negative and eps must be positive; "
                f"got prefix {self.prefix}, classes {self.classes}, eps {self.eps}."
            )
        needed = {"class": 1, "class_mean": 1, "class_distill": 2}.get(self.head, 0)
        if self.prefix < needed:
            raise ValueError(f"The head {self.head!r} reads {needed} prefix token(s); got prefix {self.prefix}.")
        if self.labels and len(self.labels) != self.classes:
            raise ValueError(f"There must be one label a class; got {len(self.labels)} for {self.classes} classes.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std must hold three numbers, std positive; got {self.mean} and {self.std}.")


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A pretrained vision transformer as a value: settings and single-precision tensors under canonical names.

    Raises ValueError when the tensors are not exactly those that `shapes` asks for.
    """

    settings: PlainSettings
    tensors: Mapping[str, Tensor]

    def __post_init__(self):
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        wanted = shapes(
            self.settings, embed_norm="embed.norm.weight" in self.tensors, scale="blocks.0.scale1" in self.tensors
        )
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if wrong:
            parts = [f"{n}: expected {wanted.get(n, 'nothing')}, found {found.get(n, 'nothing')}" for n in wrong[:5]]
            raise ValueError(f"Plain tensors must fit their settings; {len(wrong)} do not: {'; '.join(parts)}.")


def shapes(settings: PlainSettings, *, embed_norm: bool, scale: bool) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes (weights are out, in) of a plain network.

    `embed_norm`: a norm follows the embedding (CLIP); `scale`: each sublayer's output has a LayerScale.
    """
    D, P, H = settings.width, settings.prefix, settings.hidden
    rows, columns = settings.grid
    result: dict[str, tuple[int, ...]] = {
        "embed.weight": (D, 3, settings.patch, settings.patch),
        "embed.bias": (D,),
        "embed.prefix": (P, D),
        "embed.prefix_position": (P, D),
        "embed.position": (rows, columns, D),
    }
    if embed_norm:
        result |= _norm("embed.norm", D)
    gates = 2 if settings.activation == "swiglu" else 1
    for i in range(settings.depth):
        block = f"blocks.{i}"
        result |= _norm(f"{block}.norm1", D)
        result |= _linear(f"{block}.attention.qkv", 3 * D, D) | _linear(f"{block}.attention.out", D, D)
        result |= _norm(f"{block}.norm2", D)
        result |= _linear(f"{block}.mlp.in", gates * H, D) | _linear(f"{block}.mlp.out", D, H)
        if scale:
            result |= {f"{block}.scale1": (D,), f"{block}.scale2": (D,)}
    result |= _norm("norm", D)
    if settings.head == "attention":
        result |= {"pool.query": (D,)} | _linear("pool.attention.qkv", 3 * D, D) | _linear("pool.attention.out", D, D)
        result |= _norm("pool.norm", D) | _linear("pool.mlp.in", H, D) | _linear("pool.mlp.out", D, H)
    if settings.classes:
        result |= _linear("head", settings.classes, 2 * D if settings.head == "class_mean" else D)
        if settings.head == "class_distill":
            result |= _linear("head_distill", settings.classes, D)
    return result


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
