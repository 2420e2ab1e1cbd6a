"""What every other way to run a vision transformer's own weights has in common with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.layers.readout import Head
    from nestor.models.vit import ViT, ViTSettings
    from nestor.types import Output


class Wrapped(nn.Module, ABC):
    """A ViT run in another way: its weights are shared and not copied, so that training one trains the other.

    Args:
        model: a ViT.
        budget: as in ViT; may be set between any two calls, or given with a call.
    """

    def __init__(self, model: ViT, budget: float = 1.0):
        super().__init__()
        self.model, self.budget = model, budget

    def forward(self, images: Tensor, budget: float | None = None) -> Output:
        """(B, 3, H, W) -> logits, tokens in their places on the grid, and routings.

        Raises:
            ValueError: when the pictures do not fit the patches, or the budget cannot be met.
        """
        rows, columns = self.cells(images.shape)
        return self.run(images, self.plan(rows * columns, self.budget if budget is None else budget))

    @property
    def settings(self) -> ViTSettings:
        """Those of the network inside."""
        return self.model.settings

    @property
    def head(self) -> Head | None:
        """That of the network inside."""
        return self.model.head

    def cells(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches of pictures of this shape, as in ViT."""
        return self.model.cells(shape)

    def full_macs(self, patches: int) -> int:
        """Multiply-accumulates of one picture with this many patches at full budget: those of the network inside."""
        return self.model.full_macs(patches)

    @abstractmethod
    def run(self, images: Tensor, plan: tuple[int, ...]) -> Output:
        """Run a plan, as from `plan`, on pictures (B, 3, H, W)."""

    @abstractmethod
    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """What the budget comes to, in whole numbers.

        Raises:
            ValueError: when the budget cannot be met.
        """

    @abstractmethod
    def macs(self, plan: Sequence[int]) -> int:
        """Multiply-accumulates of one picture under a plan."""

    @abstractmethod
    def least_budget(self, patches: int) -> float:
        """The smallest budget that can be met."""
