"""Two baselines that every router must beat: one width for all patches, and widths at random."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.models.vit import ViT, ViTSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.types import Output


@final
class Uniform(nn.Module):
    """A nested network in which all patches of every picture take the same expert, the widest that the budget allows.

    Args:
        model: a ViT, shared and not copied.
        budget: as in ViT; may be set between any two calls, or given with a call.
    """

    def __init__(self, model: ViT, budget: float = 1.0):
        super().__init__()
        self.model, self.budget = model, budget

    @property
    def settings(self) -> ViTSettings:
        """Those of the nested network."""
        return self.model.settings

    def forward(self, images: Tensor, budget: float | None = None) -> Output:
        """(B, 3, H, W) -> logits, tokens and routings.

        Raises:
            ValueError: when the pictures do not fit the patches, or the budget cannot be met.
        """
        rows, columns = self.model.embed.cells(images.shape)
        return self.run(images, self.plan(rows * columns, self.budget if budget is None else budget))

    def run(self, images: Tensor, plan: tuple[int, ...]) -> Output:
        """Run a plan, as from `plan`, on pictures (B, 3, H, W)."""
        return self.model.run(images, plan)

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """How many patches every expert serves: all of them the widest that fits, none the others.

        Raises:
            ValueError: when the budget lies outside what the widths allow.
        """
        full, experts = self.full_macs(patches), self.settings.nest.experts
        options = [tuple(patches * (j == i) for j in range(experts)) for i in reversed(range(experts))]
        fitting = (counts for counts in options if budget <= 1 and self.macs(counts) / full <= budget)
        if (counts := next(fitting, None)) is not None:
            return counts
        raise ValueError(
            f"budget must lie in [{self.least_budget(patches):.3g}, 1] for widths {self.settings.nest.widths}; "
            f"got {budget:.4g}. Add a narrower width or raise the budget."
        )

    def macs(self, plan: Sequence[int]) -> int:
        """Multiply-accumulates of one picture whose patches are spread over the experts like this."""
        return self.model.macs(plan)

    def full_macs(self, patches: int) -> int:
        """Multiply-accumulates of one picture with all patches at full width."""
        return self.model.full_macs(patches)

    def least_budget(self, patches: int) -> float:
        """The smallest budget that the widths allow."""
        return self.model.least_budget(patches)


def randomly_routed(model: ViT) -> ViT:
    """A copy of a nested network whose router draws scores at random, from torch's generator, at every call."""
    # Built without memory, so that no generator is advanced and nothing is initialised twice.
    with torch.device("meta"):
        copy = ViT(replace(model.settings, scores=("uniform",) if model.settings.nest.experts > 1 else ()))
    weights = {name: t.clone() for name, t in model.state_dict().items() if not name.startswith("router.")}
    copy.load_state_dict(weights, assign=True)
    copy.checkpointing, copy.budget = model.checkpointing, model.budget
    return copy.train(model.training)
