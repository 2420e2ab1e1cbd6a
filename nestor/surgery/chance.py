"""What a cut by likeness is held against: neurons dealt out at random, and experts drawn at random."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from nestor.layers.mixture import Mixture
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.refine import unweighted
from nestor.routing.router import ComposedRouter
from nestor.routing.score import Uniform
from nestor.surgery.grow import keys, split

if TYPE_CHECKING:
    from nestor.experts.feedforward import FeedForward
    from nestor.models.composed import Composed


def scattered(dense: FeedForward, experts: int, choices: int) -> Mixture:
    """As `nestor.surgery.grow.emerge` makes it, but for the neurons of an expert, which are any.

    Args:
        dense: one expert.
        experts: E.
        choices: K.
    """
    looked_for = keys(dense)
    found = torch.randperm(len(looked_for)) % experts
    score = Dot(looked_for.shape[1], experts)
    with torch.no_grad():
        score.weight.copy_(torch.stack([looked_for[found == expert].mean(0) for expert in range(experts)]))
    score.weight.requires_grad_(False)
    router = ComposedRouter(score, [], partial(top_k, k=choices), [unweighted])
    return Mixture(router, split(dense, found, choices))


def drawn(model: Composed) -> Composed:
    """A copy of a network with composed routers, whose tokens draw as many of the same experts at random."""
    made = copy.deepcopy(model)
    for layer in made.mixtures:
        cast("Any", layer.router).score = Uniform(len(layer.experts.costs))
    return made
