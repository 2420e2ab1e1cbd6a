"""Experts become fewer, or one network again."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestor.experts.feedforward import FeedForward
from nestor.experts.gated import Scaled
from nestor.experts.stacked import average, select
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.routing.several import Renamed
from nestor.types import NOBODY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.composed import Composed
    from nestor.types import Experts, Sparse


def join(experts: FeedForward, scale: float = 1.0) -> FeedForward:
    """One network whose answer is `scale` times the sum of all experts' answers: their units side by side."""
    fan = experts.activation.fan
    inward = experts.inward.unflatten(1, (fan, -1)).transpose(0, 1).flatten(0, 2)
    outward = scale * experts.outward.transpose(0, 1).flatten(1)
    inward_bias = outward_bias = None
    if experts.inward_bias is not None and experts.outward_bias is not None:
        inward_bias = experts.inward_bias.unflatten(1, (fan, -1)).transpose(0, 1).flatten()[None]
        outward_bias = scale * experts.outward_bias.sum(0, keepdim=True)
    return FeedForward.of(inward[None], outward[None], inward_bias, outward_bias, activation=experts.activation)


def merge(layer: Mixture, load: Tensor | None = None, weight: float = 1.0) -> FeedForward:
    """One network in place of a mixture: the mean of its experts, plus its shared experts.

    Exact where all experts are equal and the weights of every token add up to `weight`; else the nearer the less the
    experts differ. What it costs is known in advance and the same for every token.

    Args:
        layer: a mixture of feed-forward experts, scaled or not, with or without shared ones of the same activation.
        load: (E,), how much each expert counts, for instance its share of the tokens; all the same unless given.
        weight: mean sum of a token's weights, for instance the mean gate of the chosen expert.

    Raises:
        ValueError: when the experts are of another kind, or shared ones differ in activation.
    """
    experts = _baked(layer.experts) if isinstance(layer.experts, Scaled) else layer.experts
    if not isinstance(experts, FeedForward) or not isinstance(layer.shared, FeedForward | None):
        kinds = " and ".join(type(part).__name__ for part in (experts, layer.shared) if part is not None)
        raise ValueError(f"only feed-forward experts can become one network; got {kinds}. Keep the mixture.")
    routed = join(average(experts, load), weight)
    if layer.shared is None:
        return routed
    always = join(layer.shared)
    if always.activation != routed.activation:
        raise ValueError("routed and shared experts must have one activation to become one network; they differ.")
    (up, down, start, end), (up2, down2, start2, end2) = _units(routed), _units(always)
    biased = routed.inward_bias is not None or always.inward_bias is not None
    return FeedForward.of(
        torch.cat([up, up2], 1).flatten(0, 1)[None],
        torch.cat([down, down2], 1)[None],
        torch.cat([start, start2], 1).flatten()[None] if biased else None,
        (end + end2)[None] if biased else None,
        activation=routed.activation,
    )


def undo(model: Composed, number: int, routing: Sparse) -> Composed:
    """A copy of a network with one of its mixtures merged into one network, by load and weights of a decision.

    Args:
        model: with mixtures of feed-forward experts.
        number: which of `model.mixtures`.
        routing: what that one decided about typical items.
    """
    new = copy.deepcopy(model)
    layer = new.mixtures[number]
    total = routing.weight.detach().sum(-1).mean().item()
    one = Dense(merge(layer, routing.counts, total))
    for block in new.chain:
        block.layer = one if block.layer is layer else block.layer
    return new


def keep(layer: Mixture, experts: Sequence[int]) -> Mixture:
    """A mixture of some of the experts; tokens lose the share of those that are gone, all else stays.

    The router still scores all experts, so that the weights of those that stay do not change; it is used, not copied.

    Args:
        layer: a sparse mixture of stacked experts.
        experts: which to keep, for instance those with a share of the tokens.

    Raises:
        ValueError: when an expert does not exist or is named twice, or the experts are not stacked.
    """
    made = select(layer.experts, experts)
    names = [experts.index(e) if e in experts else NOBODY for e in range(len(layer.experts.costs))]
    if len(set(experts)) != len(experts):
        raise ValueError(f"every expert can be kept once; got {tuple(experts)}.")
    return Mixture(Renamed(layer.router, names, len(experts)), made, layer.shared)


def _baked(experts: Scaled) -> Experts:
    """The scaled experts with the numbers in their own last weights."""
    inner = experts.experts
    if not isinstance(inner, FeedForward):
        return inner
    bias = None if inner.outward_bias is None else inner.outward_bias * experts.scale
    outward = inner.outward * experts.scale.unsqueeze(-1)
    return FeedForward.of(inner.inward, outward, inner.inward_bias, bias, activation=inner.activation)


def _units(one: FeedForward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inward (fan, H, D), outward (D', H) and biases (fan, H) and (D',) of one network, zeros where there are none."""
    fan = one.activation.fan
    inward_bias = one.inward.new_zeros(one.inward.shape[1]) if one.inward_bias is None else one.inward_bias[0]
    outward_bias = one.outward.new_zeros(one.outward.shape[1]) if one.outward_bias is None else one.outward_bias[0]
    return one.inward[0].unflatten(0, (fan, -1)), one.outward[0], inward_bias.unflatten(0, (fan, -1)), outward_bias
