"""Two baselines that every router must beat: one width for all patches, and widths at random."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch

from nestor.models.vit import ViT
from nestor.models.wrapped import Wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.types import Output


@final
class Uniform(Wrapped):
    """A nested network in which all patches of every picture take the same expert, the widest that the budget allows.

    Trained over the budgets of its widths, it is what MoNE calls MatViT, after MatFormer (arXiv 2310.07707).

    Args:
        model: a ViT, shared and not copied.
        budget: as in ViT; may be set between any two calls, or given with a call.
    """

    def run(self, images: Tensor, plan: tuple[int, ...]) -> Output:
        """Run a plan, as from `plan`, on pictures (B, 3, H, W)."""
        return self.model.run(images, plan)

    def budgets(self, patches: int) -> tuple[float, ...]:
        """What each width costs as a share of the full network, rising: E budgets, the last 1."""
        return tuple(self.macs(counts) / self.full_macs(patches) for counts in self._options(patches))

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """How many patches every expert serves: all of them the widest that fits, none the others.

        Raises:
            ValueError: when the budget lies outside what the widths allow.
        """
        full, options = self.full_macs(patches), reversed(self._options(patches))
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

    def least_budget(self, patches: int) -> float:
        """The smallest budget that the widths allow."""
        return self.model.least_budget(patches)

    def _options(self, patches: int) -> list[tuple[int, ...]]:
        """All patches at each width, the narrowest first."""
        experts = self.settings.nest.experts
        return [tuple(patches * (j == i) for j in range(experts)) for i in range(experts)]


def randomly_routed(model: ViT) -> ViT:
    """A copy of a nested network whose router draws scores at random, from torch's generator, at every call."""
    return routed_by(model, ("uniform",))


def routed_by(model: ViT, scores: tuple[str, ...]) -> ViT:
    """A copy of a network whose router has these scores, where it has more than one expert.

    Args:
        model: is not changed.
        scores: as in ViTSettings; what was learnt of the old ones stays where they come first among these, and starts
            anew otherwise.
    """
    old = model.settings.scores
    keeps = scores[: len(old)] == old
    with torch.random.fork_rng(devices=[]):
        copy = ViT(replace(model.settings, scores=scores if model.settings.nest.experts > 1 else ()))
    kept = {name: t for name, t in model.state_dict().items() if keeps or not name.startswith("router.")}
    copy.to(next(model.parameters())).load_state_dict(copy.state_dict() | kept)
    copy.checkpointing, copy.budget = model.checkpointing, model.budget
    return copy.train(model.training)
