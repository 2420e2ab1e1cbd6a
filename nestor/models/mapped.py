"""Dense prediction: an elastic network whose patch tokens become a map of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

from torch import Tensor, nn

from nestor.models.merged import Merged
from nestor.models.pruned import Pruned
from nestor.models.uniform import Uniform
from nestor.models.vit import ViT, ViTSettings
from nestor.types import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.layers.maps import MapHead

Backbone: TypeAlias = ViT | Merged | Pruned | Uniform
"""What can stand in front of a map: a network, dense or nested, or another way to run one."""


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """How a network of maps is built: its backbone, and the `widths` of its head (nestor.layers.maps)."""

    backbone: ViTSettings
    widths: tuple[int, ...]


@final
class Mapped(nn.Module):
    """An elastic network that draws a map: its patch tokens, in their places on the grid, go through a head for maps.

    The head costs the same at every budget; what it leaves is the backbone's.

    Args:
        backbone: any elastic network without a head for classes, shared and not copied.
        head: reads tokens as wide as the backbone's; shared and not copied.
        budget: the fraction of the full network's multiply-accumulates, those of the head included, that one forward
            pass may spend. May be set between any two calls, or given with a call.

    Raises:
        ValueError: when backbone and head do not fit each other, or the backbone has a head for classes.
    """

    def __init__(self, backbone: Backbone, head: MapHead, budget: float = 1.0):
        super().__init__()
        width, classes = backbone.settings.nest.widths[-1], backbone.settings.classes
        if head.widths[0] != width:
            raise ValueError(
                f"the head must read tokens as wide as the backbone's, {width}; got {head.widths[0]}. "
                "Take the head that was made for this network."
            )
        if classes:
            raise ValueError(
                f"a map is drawn by a network without a head for classes; got one for {classes}. "
                "Take the network from before it was given one."
            )
        self.backbone, self.head, self.budget = backbone, head, budget

    @property
    def settings(self) -> ViTSettings:
        """Those of the backbone."""
        return self.backbone.settings

    @property
    def inside(self) -> ViT:
        """The network whose weights the backbone runs."""
        return self.backbone if isinstance(self.backbone, ViT) else self.backbone.model

    def forward(self, images: Tensor, budget: float | None = None) -> Output:
        """(B, 3, H, W), normalised -> log-odds of the map (B, H, W) as logits, tokens and routings.

        Raises:
            ValueError: when the pictures do not fit the patches, or the budget cannot be met.
        """
        rows, columns = self.cells(images.shape)
        return self.run(images, self.plan(rows * columns, self.budget if budget is None else budget))

    def run(self, images: Tensor, plan: Sequence[int]) -> Output:
        """Run a plan, as from `plan`."""
        seen = self.backbone.run(images, tuple(plan[1:]))
        patches, (height, width) = seen.tokens[:, self.settings.prefix :], images.shape[-2:]
        logits = self.head(patches, self.cells(images.shape), (height, width))
        return Output(logits, seen.routings, lambda: seen.tokens)

    def map(self, images: Tensor, budget: float | None = None) -> Tensor:
        """(B, 3, H, W), normalised -> the map (B, H, W), every pixel in [0, 1].

        Raises:
            ValueError: when the pictures do not fit the patches, or the budget cannot be met.
        """
        logits = self(images, budget=budget).logits
        return logits.sigmoid()

    def cells(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches of pictures of this shape (B, 3, H, W).

        Raises:
            ValueError: when the pictures do not fit the patches.
        """
        return self.inside.cells(shape)

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """How many patches there are, then the backbone's plan for what the head leaves of the budget.

        Raises:
            ValueError: when the budget lies outside what head and backbone allow.
        """
        low = self.least_budget(patches)
        # A rounding error below the least budget is the least budget.
        if not low * (1 - 1e-9) <= budget <= 1:
            raise ValueError(
                f"budget must lie in [{low:.3g}, 1] for a head of {self._fixed(patches):,} multiply-accumulates and "
                f"this backbone; got {budget:.4g}. Raise it, or take a backbone that can do with less."
            )
        share = 1 - (1 - budget) * self.full_macs(patches) / self.backbone.full_macs(patches)
        return (patches, *self.backbone.plan(patches, max(share, self.backbone.least_budget(patches))))

    def macs(self, plan: Sequence[int]) -> int:
        """Multiply-accumulates of one picture under this plan; tokens are counted as if all were read at full width."""
        return self.backbone.macs(tuple(plan[1:])) + self._fixed(plan[0])

    def full_macs(self, patches: int) -> int:
        """Multiply-accumulates of one picture with this many patches at full budget."""
        return self.backbone.full_macs(patches) + self._fixed(patches)

    def least_budget(self, patches: int) -> float:
        """The smallest budget that head and backbone allow."""
        full = self.backbone.full_macs(patches)
        return (self.backbone.least_budget(patches) * full + self._fixed(patches)) / self.full_macs(patches)

    def _fixed(self, patches: int) -> int:
        width = self.head.widths[0]
        return self.head.macs(patches) + (patches + self.settings.prefix) * width * width
