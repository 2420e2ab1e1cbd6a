"""How long a step of training takes, networks in turns."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from nestor.measure.clock import race

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from nestor.models.composed import Composed


def step_times(models: Mapping[str, Composed], images: Tensor, *, rounds: int = 20) -> dict[str, float]:
    """Median milliseconds of a forward and a backward pass, without the update, which only parameters decide.

    Args:
        models: by name; they get no gradients.
        images: (B, 3, H, W), of one step.
        rounds: how often each is timed.

    Raises:
        ValueError: there is no network.
    """
    found = race({name: partial(_step, model, images) for name, model in models.items()}, rounds=rounds)
    return {name: timing.median_ms for name, timing in found.items()}


def _step(model: Composed, images: Tensor) -> None:
    logits = model(images).logits
    assert logits is not None
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.autograd.grad(logits.square().sum(), learning, allow_unused=True)
