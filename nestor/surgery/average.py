"""Networks that began alike into one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.vit import ViT


@torch.no_grad()
def averaged(models: Sequence[ViT]) -> ViT:
    """A network whose every weight is the mean of those of several networks, which began alike.

    Model soups (Wortsman et al., arXiv 2203.05482): what was tuned from one start under several seeds lies in one
    basin, and the mean costs no more to run than one of them.

    Args:
        models: of the same settings; they are not changed.

    Raises:
        ValueError: there is none, or their settings differ.
    """
    if not models or any(model.settings != models[0].settings for model in models):
        raise ValueError(
            f"networks to be averaged must have the same settings, and be one or more; got {len(models)}. "
            "Start all of them from one network."
        )
    new, states = copy.deepcopy(models[0]), [model.state_dict() for model in models]
    for name, tensor in new.state_dict().items():
        tensor.copy_(torch.stack([state[name] for state in states]).double().mean(0))
    return new
