"""A running mean of a network's weights over its training."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, final

import torch

if TYPE_CHECKING:
    from nestor.models.composed import Composed


@final
class OverTime:
    """An exponential mean of the weights after each step of a training: what is done `after` it by a network.

    A step counts by 1 - keep, or by its share of a plain mean of all steps while that is more, so that the weights of
    the start do not linger.

    Args:
        keep: share of the mean that stays from step to step.

    Raises:
        ValueError: when keep does not lie in [0, 1).
    """

    def __init__(self, keep: float = 0.99):
        if not 0 <= keep < 1:
            raise ValueError(f"keep must lie in [0, 1); got {keep}. 0.99 looks back a hundred steps.")
        self.keep, self.steps, self.mean = keep, 0, dict[str, torch.Tensor]()

    @torch.no_grad()
    def __call__(self, model: torch.nn.Module, progress: float) -> None:
        """Take in the weights as they are."""
        self.steps += 1
        share = max(1 - self.keep, 1 / self.steps)
        for name, tensor in model.named_parameters():
            self.mean[name] = tensor.detach().clone() if self.steps == 1 else self.mean[name].lerp_(tensor, share)


def over_time(model: Composed) -> Composed:
    """A copy of a trained network with the mean of its weights over the training.

    Raises:
        ValueError: the mean was not taken.
    """
    follower = model.after
    if not isinstance(follower, OverTime) or not follower.steps:
        raise ValueError("there is no mean of the weights. Train the network with an OverTime as its `after`.")
    new = copy.deepcopy(model)
    new.after = None
    with torch.no_grad():
        for name, tensor in new.named_parameters():
            tensor.copy_(follower.mean[name])
    return new
