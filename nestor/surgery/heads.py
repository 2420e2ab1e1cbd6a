"""A trained network whose attention asks in fewer heads, without a weight more."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from nestor.layers.heads import ChosenHeads
from nestor.routing.adjust import Softmax
from nestor.routing.always import Always, Lengths
from nestor.routing.choose import top_k
from nestor.routing.refine import hard
from nestor.routing.router import ComposedRouter
from nestor.routing.score import Uniform

if TYPE_CHECKING:
    from nestor.models.composed import Composed


def cut_heads(model: Composed, heads: int, always: int, *, chance: bool = False) -> Composed:
    """A copy of a network whose tokens ask in so many heads: the first ones, and of the others those with long queries.

    All weights are one, so that with all heads nothing changes; backwards, a chosen head's weight is its probability.

    Args:
        model: whose attention is `ChosenHeads`.
        heads: that a token asks in.
        always: the first heads, which always answer.
        chance: choose the others at random instead, the baseline.

    Raises:
        ValueError: when the attention is of another kind, or the numbers do not fit.
    """
    new = copy.deepcopy(model)
    for block in new.chain:
        own: Any = block.attention
        if not isinstance(own, ChosenHeads):
            raise ValueError(f"only chosen heads can be cut; got {type(own).__name__}. Use layers.heads.taken.")
        _, H, _, D = own.inward.shape
        if not 1 <= always < heads <= H:
            raise ValueError(f"heads must lie in ({always}, {H}] and {always} of them be at least 1; got {heads}.")
        score = Uniform(H - always) if chance else Lengths(own.inward, own.inward_bias, first=always)
        chosen = ComposedRouter(score, [Softmax()], partial(top_k, k=heads - always), [hard])
        own.router = Always(D, always, chosen)
        for parameter in (own.router.share, own.router.kind):
            parameter.requires_grad_(False)
    return new
