"""Which expert each patch of a picture or clip took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.types import Sparse

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.measure.cost import Elastic
    from nestor.models.video import VideoViT


@torch.no_grad()
def experts(model: Elastic, images: Tensor, budget: float) -> Tensor:
    """The expert of each patch, counted from 0: (B, indices, patches), where a picture is a single index.

    Args:
        model: an elastic network.
        images: normalised pictures (B, 3, H, W), or clips (B, F, 3, H, W).
        budget: of the network.

    Raises:
        ValueError: the network has one expert, or pictures or budget do not fit it.
    """
    routings = model(images, budget=budget).routings
    if not routings or not isinstance(routings[0], Sparse):
        raise ValueError("the network needs a router, and this one has a single expert. Make it elastic.")
    index = routings[0].index
    return index.view(len(images), -1, index.shape[1])


def miscounted(model: Elastic, images: Tensor, budget: float) -> int:
    """How many experts have more or fewer patches than the plan says, over all pictures, or all indices of clips."""
    found = experts(model, images, budget)
    plan = torch.tensor(model.plan(found.shape[-1], budget), device=found.device)
    return int((torch.nn.functional.one_hot(found, len(plan)).sum(2) != plan).sum())


def swayed(model: VideoViT, clips: Tensor, budget: float) -> int:
    """How many patches of the first index are routed otherwise when all other indices are those of another clip."""
    first = model.settings.tubelet
    others = torch.cat([clips[:, :first], clips.roll(1, 0)[:, first:]], 1)
    ours, theirs = (experts(model, each, budget)[:, 0] for each in (clips, others))
    return int((ours != theirs).sum())
