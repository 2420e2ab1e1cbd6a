"""Which expert each patch of a clip took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.types import Sparse

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.models.video import VideoViT


@torch.no_grad()
def experts(model: VideoViT, clips: Tensor, budget: float) -> Tensor:
    """Clips (B, F, 3, H, W) -> the expert of each patch of each index, counted from 0, (B, indices, patches).

    Raises:
        ValueError: the network has one expert, or clips or budget do not fit it.
    """
    routings = model(clips, budget=budget).routings
    if not routings or not isinstance(routings[0], Sparse):
        raise ValueError("the spatial encoder needs a router, and this one has a single expert. Make it elastic.")
    return routings[0].index.view(len(clips), model.settings.indices, -1)


def miscounted(model: VideoViT, clips: Tensor, budget: float) -> int:
    """How many experts of an index have more or fewer patches than the plan says, over all indices of all clips."""
    found = experts(model, clips, budget)
    plan = torch.tensor(model.plan(found.shape[-1], budget), device=found.device)
    return int((torch.nn.functional.one_hot(found, len(plan)).sum(2) != plan).sum())


def swayed(model: VideoViT, clips: Tensor, budget: float) -> int:
    """How many patches of the first index are routed otherwise when all other indices are those of another clip."""
    first = model.settings.tubelet
    others = torch.cat([clips[:, :first], clips.roll(1, 0)[:, first:]], 1)
    ours, theirs = (experts(model, each, budget)[:, 0] for each in (clips, others))
    return int((ours != theirs).sum())
