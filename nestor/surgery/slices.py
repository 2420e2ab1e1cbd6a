"""A network cut as tensor parallelism would cut it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.surgery.grow import split

if TYPE_CHECKING:
    from nestor.experts.feedforward import FeedForward


def sliced(one: FeedForward, experts: int) -> FeedForward:
    """Neighbouring hidden units of one network as experts of equal size; the sum of all experts is the network.

    Args:
        one: a single expert; it stays as it is.
        experts: a divisor of its hidden units; each brings its even share of the output's bias.

    Raises:
        ValueError: when there are several networks, or the experts do not divide the units.
    """
    hidden = one.outward.shape[-1]
    return split(one, torch.arange(hidden) * experts // hidden, experts)
