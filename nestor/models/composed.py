"""A small vision transformer composed of given blocks: what recipes compare mixtures in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor, nn

from nestor.layers.block import Block, Dense, SelfAttention
from nestor.layers.embed import PatchEmbed
from nestor.layers.mixture import Mixture
from nestor.layers.routed import RoutedBlock
from nestor.layers.together import spent
from nestor.types import Output, Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, kw_only=True)
class ComposedSettings:
    """The frame around the blocks; the meaning of each field is that of ViTSettings.

    The head reads the mean of the patches, or the class token and that mean when `head` is `class_mean`.
    """

    width: int
    patch: int
    grid: tuple[int, int]
    classes: int
    labels: tuple[str, ...] = ()
    prefix: int = 0
    head: str = "mean"
    eps: float = 1e-6
    antialias: bool = False
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.head not in ("mean", "class_mean") or (self.head == "class_mean" and not self.prefix):
            raise ValueError(
                f"a head reads mean, or class_mean with a class token; got {self.head!r} and prefix {self.prefix}."
            )


@final
class Composed(nn.Module):
    """Patches, the given blocks, a norm and a linear head, with every decision of every mixture in the output.

    Each block's routers are told the last decision taken before it (`Signal.routing`), so that a layer may repeat it.

    Args:
        settings: the frame.
        blocks: in their order; a block may come several times, and blocks may share parts.
        after: done after every step of training with the network and the fraction of the training that is over.
    """

    def __init__(
        self,
        settings: ComposedSettings,
        blocks: Sequence[Block],
        after: Callable[[nn.Module, float], None] | None = None,
    ):
        super().__init__()
        s = self.settings = settings
        self.after = after
        self.embed = PatchEmbed(
            width=s.width, patch=s.patch, grid=s.grid, prefix=s.prefix, antialias=s.antialias, norm_eps=None
        )
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(s.width, eps=s.eps)
        self.head = nn.Linear(s.width * (2 if s.head == "class_mean" else 1), s.classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, budget: float | None = None) -> Output:
        """(B, 3, H, W) -> logits, tokens and the decisions of all layers; there is one budget, the whole."""
        return self.told(images, Signal())

    def told(self, images: Tensor, signal: Signal) -> Output:
        """(B, 3, H, W) -> the same when all routers are told this from the start, beside the grid.

        With `Signal(counts=(T, 0))` a network that may skip tokens skips none.
        """
        tokens, routings = self.embed(images), ()
        signal = replace(signal, grid=self.cells(images.shape))
        for block in self.chain:
            tokens, found = block(tokens, signal)
            routings += found
            signal = replace(signal, routing=found[-1]) if found else signal
        tokens = self.norm(tokens)
        read = tokens[:, self.settings.prefix :].mean(1)
        if self.settings.head == "class_mean":
            read = torch.cat([tokens[:, 0], read], -1)
        return Output(self.head(read), routings, lambda: tokens)

    def settle(self, progress: float) -> None:
        """Do what is to be done after a step of training, of which this fraction is over."""
        if self.after is not None:
            self.after(self, progress)

    def cells(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches of pictures of this shape (B, 3, H, W)."""
        return self.embed.cells(shape)

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """All patches, whatever the budget."""
        return (patches,)

    def least_budget(self, patches: int) -> float:
        """The whole: nothing can be saved by a dial."""
        return 1.0

    @property
    def mixtures(self) -> tuple[Mixture, ...]:
        """Those of all blocks, one that is shared once."""
        found = (block.layer for block in self.chain)
        return tuple(dict.fromkeys(layer for layer in found if isinstance(layer, Mixture)))

    def macs(self, output: Output, items: int, patches: int) -> float:
        """Multiply-accumulates of one item, the mean of those that gave this output.

        Args:
            output: of this network, which decided in feed-forward parts, in attention or in both.
            items: B.
            patches: of each item.
        """
        T, total, left = patches + self.settings.prefix, 0, iter(output.routings)
        shape, blocks = (items, T, self.settings.width), cast("Sequence[Any]", self.blocks)
        for block in blocks:
            routed = isinstance(block, RoutedBlock)
            total += block.attention.macs(next(left), shape) if routed else items * block.attention.macs(T)
            total += spent(block.layer, left, shape)
        return self.embed.macs(patches) + self.head.weight.numel() + total / max(1, items)

    @property
    def chain(self) -> Sequence[Block]:
        """The blocks in their order."""
        return cast("Sequence[Block]", self.blocks)


def stack(width: int, heads: int, layers: Sequence[Mixture | Dense]) -> list[Block]:
    """Blocks with attention of their own, one for each of these feed-forward layers."""
    return [Block(width, SelfAttention(width, heads), layer) for layer in layers]


def tiny(width: int, blocks: Sequence[Block]) -> Composed:
    """A network of these blocks for pictures of 28 pixels and ten classes: 49 patches of 4 pixels, no class token."""
    return Composed(ComposedSettings(width=width, patch=4, grid=(7, 7), classes=10), blocks)
