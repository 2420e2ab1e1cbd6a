"""Random numbers that decide."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel(like: Tensor) -> Tensor:
    """Gumbel noise from torch's generator, finite, of the shape, type and place of a tensor of any shape.

    The largest K of logits plus such noise are a draw of K without replacement from the logits' softmax.
    """
    return -torch.empty_like(like).exponential_().clamp_min(torch.finfo(like.dtype).tiny).log()
