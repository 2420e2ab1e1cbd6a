"""The networks that race: one dense network, as it is in three libraries, and the elastic ones made from it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor, nn

from benchmarks.rivals import reach_rivals
from benchmarks.settings import INT8
from nestor.models.merged import Merged
from nestor.models.pretrained.timm import from_model
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest, published, shape
from nestor.surgery.quantize import quantize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.settings import Vision
    from nestor.models.plain import Plain
    from nestor.models.vit import ViT


@dataclass(frozen=True, eq=False, kw_only=True)
class Networks:
    """One dense network and what competes with it, all with random weights.

    Attributes:
        plain: the dense network as a value, single precision.
        dense: the same in our own class.
        timm: the same in timm's, from which the weights come.
        transformers: one of the same sizes in transformers (SDPA), with weights of its own.
        elastic: what was made from `dense`, by name: `nested` (the default shape), `unmerged` (the same without
            merging on the way), `published` (its shape), `merged` (token merging alone).
    """

    plain: Plain
    dense: ViT
    timm: nn.Module
    transformers: nn.Module
    elastic: Mapping[str, ViT | Merged]

    def to(self, precision: str) -> Networks:
        """A copy in `float32` or `bfloat16`, in which token merging shares the dense network.

        In `int8` there are only our dense network and the nested ones.
        """
        if precision == INT8:
            return self._rounded()
        kind = getattr(torch, precision)
        dense = copy.deepcopy(self.dense).to(kind)
        timm, transformers = (copy.deepcopy(network).to(kind) for network in (self.timm, self.transformers))
        elastic = {
            name: Merged(dense) if isinstance(network, Merged) else copy.deepcopy(network).to(kind)
            for name, network in self.elastic.items()
        }
        return Networks(plain=self.plain, dense=dense, timm=timm, transformers=transformers, elastic=elastic)

    def _rounded(self) -> Networks:
        s = self.dense.settings
        # Noise, as what they are timed on.
        pictures = torch.randn(2, s.channels, s.nominal, s.nominal, generator=torch.Generator().manual_seed(1))
        dense = quantize(self.dense, pictures)
        nested = {name: network for name, network in self.elastic.items() if not isinstance(network, Merged)}
        elastic = {name: quantize(network, pictures) for name, network in nested.items()}
        return replace(self, dense=dense, elastic=elastic)


@final
class Logits(nn.Module):
    """A network of any library as a function from pictures to logits, at one budget if it is elastic."""

    def __init__(self, network: nn.Module, budget: float | None = None):
        super().__init__()
        self.network, self.budget = network, budget

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        output = self.network(images) if self.budget is None else self.network(images, self.budget)
        return output if isinstance(output, Tensor) else output.logits


def build(vision: Vision, elastic: Sequence[str], seed: int = 0) -> Networks:
    """All networks of these sizes, in single precision and evaluation mode.

    Args:
        vision: the sizes.
        elastic: which of `nested`, `unmerged`, `published` and `merged` are wanted.
        seed: of the weights.

    Raises:
        ImportError: timm or transformers is missing.
    """
    reach_rivals()
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise ImportError("The benchmarks need timm. Install it: make develop") from error
    v = vision
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = VisionTransformer(
            img_size=v.side,
            patch_size=v.patch,
            embed_dim=v.width,
            depth=v.depth,
            num_heads=v.heads,
            num_classes=v.classes,
            init_values=1.0 if v.scaled else None,
        ).eval()
        # A head of zeros, as timm makes it, would agree with any other.
        nn.init.trunc_normal_(cast("nn.Linear", theirs.head).weight, std=0.02)
        others = _transformers(v)
        # Small ones, since what the narrow experts say does not matter here.
        few = min(v.side, 4 * v.patch)
        pictures = torch.randn(4, 3, few, few)
    plain = from_model(theirs, theirs.state_dict(), {}, source="timm:benchmark")
    dense = fold(plain)
    sizes = (v.width, 4 * v.width, v.heads)
    made: dict[str, Callable[[], ViT | Merged]] = {
        "nested": lambda: nest(dense, pictures, nest=shape(*sizes), compensated=False),
        "unmerged": lambda: nest(dense, pictures, nest=shape(*sizes, merge=0.0), compensated=False),
        "published": lambda: nest(dense, pictures, nest=published(*sizes), compensated=False),
        "merged": lambda: Merged(dense),
    }
    return Networks(
        plain=plain,
        dense=dense,
        timm=theirs,
        transformers=others,
        elastic={name: made[name]() for name in elastic},
    )


def _transformers(v: Vision) -> nn.Module:
    try:
        from transformers import (
            Dinov2Config,
            Dinov2ForImageClassification,
            ViTConfig,
            ViTForImageClassification,
        )
    except ImportError as error:
        raise ImportError("The benchmarks need transformers. Install it: make develop") from error
    sizes = {
        "image_size": v.side,
        "patch_size": v.patch,
        "hidden_size": v.width,
        "num_hidden_layers": v.depth,
        "num_attention_heads": v.heads,
        "num_labels": v.classes,
        "layer_norm_eps": 1e-6,
        "attn_implementation": "sdpa",
    }
    if v.scaled:
        network = Dinov2ForImageClassification(cast("Any", Dinov2Config)(mlp_ratio=4, **sizes))
    else:
        network = ViTForImageClassification(cast("Any", ViTConfig)(intermediate_size=4 * v.width, **sizes))
    return cast("nn.Module", network).eval()
