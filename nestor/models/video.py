"""The elastic video transformer: an elastic picture transformer sees, a small ordinary one looks back in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast, final

import torch
from torch import Tensor, nn

from nestor.layers.nested import Nest, NestedBlock
from nestor.layers.readout import Head, Readout
from nestor.models.vit import ViT, ViTSettings
from nestor.ops.bands import sort
from nestor.types import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.mapped import Mapped
    from nestor.models.wrapped import Wrapped


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How an elastic video transformer is built.

    Attributes:
        space: the spatial encoder, as for pictures; it has a class token and no head.
        frames: of a clip.
        tubelet: how many frames a patch reaches over; frames / tubelet temporal indices are seen one by one.
        depth: temporal blocks, as wide as the spatial encoder's last expert.
        classes, labels, head: as in ViTSettings; the head reads the temporal tokens.

    Raises:
        ValueError: when the tubelets do not divide the frames, or the spatial encoder does not fit.
    """

    space: ViTSettings
    frames: int = 8
    tubelet: int = 2
    depth: int = 2
    classes: int = 0
    labels: tuple[str, ...] = ()
    head: str = "class"

    def __post_init__(self) -> None:
        if self.tubelet < 1 or self.frames < 2 or self.frames % self.tubelet:
            raise ValueError(
                f"a clip needs two frames or more, a multiple of the tubelet; got frames {self.frames} and tubelet "
                f"{self.tubelet}. Take 8 and 2, for instance."
            )
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1 temporal block; got {self.depth}.")
        if self.space.prefix < 1:
            raise ValueError("the spatial encoder needs a class token; got prefix 0. Set prefix=1.")
        if self.space.classes or self.space.channels != 3:
            raise ValueError(
                f"the spatial encoder takes coloured pictures and has no head of its own; got {self.space.channels} "
                f"channels and {self.space.classes} classes. Set channels=3 and classes=0."
            )

    @property
    def indices(self) -> int:
        """How many temporal indices a clip has."""
        return self.frames // self.tubelet

    @property
    def nest(self) -> Nest:
        """Widths, hidden units and heads of the spatial experts."""
        return self.space.nest

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.space.patch

    @property
    def prefix(self) -> int:
        """How many of the tokens that come out stand before those of the indices: the class token."""
        return 1

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from each channel of a frame."""
        return self.space.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Divides each channel of a frame after that."""
        return self.space.std


@final
class VideoViT(nn.Module):
    """A factorised video transformer (ViViT, arXiv 2103.15691, model 2) whose spatial encoder is elastic (MoNE).

    A clip is cut into tubelets, patches over a few frames. The spatial encoder, a `ViT`, sees the tubelets of each
    temporal index by themselves and routes them index by index, so that each has the same counts; the class token of
    each index goes on to temporal blocks of full width, with positions and a class token of their own.

    Attributes:
        space: the spatial encoder; it sees an index as a picture of 3 * tubelet channels, frame after frame.
        budget: the fraction of the full network's multiply-accumulates, temporal ones included, that one forward pass
            may spend. May be set between any two calls, or given with a call.
    """

    blocks: Sequence[NestedBlock]

    def __init__(self, settings: VideoSettings):
        super().__init__()
        s = self.settings = settings
        self.space = ViT(replace(s.space, channels=3 * s.tubelet))
        full = Nest(widths=s.nest.widths[-1:], hidden=s.nest.hidden[-1:], heads=s.nest.heads[-1:])
        activation, eps, D = s.space.activation, s.space.eps, full.widths[-1]
        self.prefix = nn.Parameter(torch.randn(1, D) * 0.02)
        self.position = nn.Parameter(torch.randn(s.indices, D) * 0.02)
        blocks = nn.ModuleList(NestedBlock(full, eps, activation) for _ in range(s.depth))
        self.blocks = cast("Sequence[NestedBlock]", blocks)
        self.readout = Readout(full, eps)
        self.head = (
            Head(kind=s.head, nest=full, classes=s.classes, prefix=1, activation=activation, eps=eps)
            if s.classes
            else None
        )
        self._budget = 1.0

    @property
    def budget(self) -> float:
        """The fraction of the full network's multiply-accumulates that a forward pass may spend."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        side = self.settings.space.nominal // self.settings.patch
        self.plan(side * side, value)
        self._budget = float(value)

    def forward(self, clips: Tensor, budget: float | None = None) -> Output:
        """(B, F, 3, H, W), normalised, of any size that the patches divide -> logits, tokens and routings.

        The tokens (B, 1 + indices, D) are the temporal ones, the class token first; the decision that comes along is
        about (B * indices, patches, E), clip after clip.

        Args:
            clips: as many frames of each as the settings say.
            budget: overrides `self.budget` for this call.

        Raises:
            ValueError: when the clips do not fit frames and patches, or the budget cannot be met.
        """
        _, rows, columns = self.cells(clips.shape)
        return self.run(clips, self.plan(rows * columns, self._budget if budget is None else budget))

    def run(self, clips: Tensor, counts: tuple[int, ...]) -> Output:
        """Run a plan, as from `plan`: counts[j] patches of each index of each clip (B, F, 3, H, W) take expert j."""
        bands, _, routings = self.space.encode(self.pictures(clips), counts)
        seen = self.space.readout.front(bands, 1).unflatten(0, (len(clips), -1)).squeeze(2)
        tokens = torch.cat([self.prefix.expand(len(clips), -1, -1), seen + self.position], 1)
        bands, order = sort(tokens, None, (seen.shape[1],), self.readout.nest.widths, 1)
        for block in self.blocks:
            bands = block(bands)
        logits = None if self.head is None else self.head(self.readout, bands, order)
        return Output(logits, routings, partial(self.readout, bands, order))

    def pictures(self, clips: Tensor) -> Tensor:
        """What `space` sees: (B, F, 3, H, W) -> (B * indices, 3 * tubelet, H, W).

        Raises:
            ValueError: when the clips do not fit frames and patches.
        """
        indices, _, _ = self.cells(clips.shape)
        return clips.flatten(1, 2).unflatten(1, (indices, -1)).flatten(0, 1)

    def cells(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Indices, rows and columns of tubelets of clips of this shape (B, F, 3, H, W).

        Raises:
            ValueError: when the clips do not fit frames and patches.
        """
        s, patch = self.settings, self.settings.patch
        frames = shape[1] if len(shape) == 5 else None
        if frames != s.frames or shape[2] != 3 or shape[3] % patch or shape[4] % patch or 0 in shape:
            raise ValueError(
                f"clips must be (B, {s.frames}, 3, H, W), {s.frames} frames with H and W multiples of the patch, "
                f"{patch}; got {tuple(shape)}. Cut and resize the clips, or build the network for clips like these."
            )
        return s.indices, shape[3] // patch, shape[4] // patch

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """How many patches of each index every expert serves at this budget: E whole numbers, as in ViT.

        What they spend never exceeds the budget and misses it by less than one token in each index.

        Raises:
            ValueError: when the budget lies outside what the widths allow.
        """
        full, low = self.full_macs(patches), self.least_budget(patches)
        # A rounding error below the least budget is the least budget.
        if not low * (1 - 1e-9) <= budget <= 1:
            raise ValueError(
                f"budget must lie in [{low:.3g}, 1] for widths {self.settings.nest.widths}, {patches} patches and "
                f"{self.settings.indices} indices; got {budget:.4g}. Add a narrower width or raise the budget."
            )
        whole, n = self.space.full_macs(patches), self.settings.indices
        # In whole numbers, since a share that is rounded up would be spent in every index.
        share = (math.floor(budget * full + 1e-6) - (full - n * whole)) // n
        return self.space.plan(patches, max(share / whole, self.space.least_budget(patches)))

    def macs(self, counts: Sequence[int]) -> int:
        """Multiply-accumulates of one clip whose patches are spread over the experts like this in each index."""
        n, D = self.settings.indices, self.readout.nest.widths[-1]
        seen = n * (self.space.macs(counts) + D * D)
        looked = sum(block.macs([n + 1]) for block in self.blocks)
        return seen + looked + (0 if self.head is None else self.head.macs(self.readout, [n + 1]))

    def full_macs(self, patches: int) -> int:
        """Multiply-accumulates of one clip with this many patches in each index, all of them at full width."""
        return self.macs([0] * (self.settings.nest.experts - 1) + [patches])

    def least_budget(self, patches: int) -> float:
        """The smallest budget that the widths allow."""
        return self.macs([patches] + [0] * (self.settings.nest.experts - 1)) / self.full_macs(patches)


Network: TypeAlias = "ViT | VideoViT | Wrapped | Mapped"
"""A network of any kind that can be trained and saved, or another way to run one."""
