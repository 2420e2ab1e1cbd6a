"""Mixtures give up their routed experts and keep the one for all tokens."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense

if TYPE_CHECKING:
    from collections.abc import Collection

    from nestor.models.composed import Composed


def without_routed(model: Composed, numbers: Collection[int]) -> Composed:
    """A copy of a network in some of whose mixtures the shared expert alone answers: one dense network each.

    Unlike `nestor.surgery.shrink.undo`, which lays both side by side, this saves what a routed expert costs, and loses
    what it learnt.

    Args:
        model: with mixtures that have a shared expert.
        numbers: which of `model.mixtures`.

    Raises:
        ValueError: there is no such mixture, or it has no shared expert.
    """
    new = copy.deepcopy(model)
    mixtures = dict(enumerate(new.mixtures))
    for number in numbers:
        shared = mixtures[number].shared if number in mixtures else None
        if not isinstance(shared, FeedForward):
            raise ValueError(f"mixture {number} of {len(mixtures)} has no shared expert to keep. Name one that has.")
        for block in new.chain:
            block.layer = Dense(shared) if block.layer is mixtures[number] else block.layer
    return new
