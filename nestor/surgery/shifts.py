"""A trained network whose multiplications become shifts, all of them or those of some tokens."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

from nestor.experts.feedforward import FeedForward
from nestor.experts.joined import Joined
from nestor.experts.rounded import Rounded, shift
from nestor.layers.mixture import Mixture
from nestor.routing.adjust import Noise, Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from nestor.layers.block import Dense


def rounded(experts: FeedForward, rounding: Callable[[Tensor], Tensor] = shift) -> Rounded:
    """The same experts with weights that are rounded whenever they are used; the unrounded ones go on learning.

    Args:
        experts: with biases; they stay as they are.
        rounding: `shift`, `ternary` or one of your own.

    Raises:
        ValueError: when the experts have no biases, or give another width than they take.
    """
    E, _, D = experts.inward.shape
    _, out, H = experts.outward.shape
    if experts.inward_bias is None or out != D:
        raise ValueError(f"only experts with biases that give the width they take can be rounded; got {D} to {out}.")
    made = Rounded(D, H, E, rounding=rounding, activation=experts.activation)
    made.load_state_dict(copy.deepcopy(experts.state_dict()))
    return made


def primitives(layer: Dense, noise: float) -> Mixture:
    """The same network twice, multiplying and shifting, and a router that picks one for each token, by its probability.

    Args:
        layer: of one feed-forward network, which is used, not copied.
        noise: standard deviation of what is added to the logits while training.

    Raises:
        ValueError: when the network is of another kind.
    """
    one = layer.experts
    if not isinstance(one, FeedForward):
        raise ValueError(f"only a feed-forward network can be had both ways; got {type(one).__name__}.")
    score = Dot(one.inward.shape[-1], 2)
    return Mixture(ComposedRouter(score, [Noise(noise), Softmax()], partial(top_k, k=1)), Joined([one, rounded(one)]))
