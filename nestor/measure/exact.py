"""Whether an elastic network is exactly the dense one at full budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.measure.cost import Elastic


@torch.no_grad()
def token_error(model: Elastic, dense: Elastic, images: Tensor) -> float:
    """Relative error of a network's tokens at full budget: norm of the difference over norm of the dense one's.

    Args:
        model: at full budget.
        dense: what it is held against, at full budget too.
        images: normalised pictures (B, 3, H, W), or clips (B, F, 3, H, W).

    Raises:
        ValueError: the pictures do not fit a network.
    """
    wanted = dense(images, budget=1.0).tokens
    return ((model(images, budget=1.0).tokens - wanted).norm() / wanted.norm()).item()
