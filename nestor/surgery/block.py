"""Reading a mixture of transformers, whose experts are one tensor for each map, as a mixture of ours."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from nestor.experts.feedforward import SWIGLU, Activation, FeedForward
from nestor.experts.gated import Gated
from nestor.layers.mixture import Mixture
from nestor.measure.foreign import scaled
from nestor.routing.adjust import Adjustment, Bias, GroupLimit, Sigmoid, Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.refine import renormalise
from nestor.routing.router import ComposedRouter
from nestor.surgery.dense import ROWS, Gate, dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.types import Experts, Sparse

_FAR = 1e-5
"""Relative difference of answers in single precision from which on a reading is wrong."""


def mixture(block: nn.Module) -> Mixture:
    """A mixture with the weights of a block of Mixtral, Qwen-MoE, OLMoE, DeepSeek and others built alike.

    Low-rank additions to one of a language model's experts, everything else as it was:

        def adapted(block):
            whole = mixture(block)
            return Mixture(whole.router, Adapted(whole.experts, rank=8, which=(2,)), whole.shared)

        new = replace(model, "model.layers.*.mlp", adapted)
        print(receipt(model, new, ids))

    The router's rule is told by what the block's gate holds, and checked on random rows, so that what comes back
    computes the same; where two experts tie it may choose otherwise. Noise on the tokens is not carried over, and once
    the block is replaced the network itself returns no router logits: decisions come from the record.

    Args:
        block: with `gate`, and `experts` that hold `gate_up_proj` (E, 2 H, D) and `down_proj` (E, D', H).

    Raises:
        ValueError: when the block is built otherwise, or no reading of it gives its answers.
    """
    single = copy.deepcopy(block).float().eval()
    part: Any = block
    held = (getattr(part, "gate", None), getattr(part, "experts", None))
    if not all(hasattr(held[1], name) for name in ("gate_up_proj", "down_proj")) or not hasattr(held[0], "weight"):
        raise ValueError(
            f"a block needs a gate with weights, and experts with gate_up_proj and down_proj; got "
            f"{type(block).__name__}. Build the mixture with FeedForward.of and a router."
        )
    up = part.experts.gate_up_proj
    tokens = torch.randn(1, ROWS * len(up), part.gate.weight.shape[-1], generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(up.device)
    with torch.no_grad():
        wanted = single(tokens.clone())
        best = torch.inf
        for refinements in _refinements(part.gate):
            made = _made(part, refinements).train(block.training)
            # Rows that scarcely differ in half precision may be routed elsewhere, so that both are compared in single.
            found = copy.deepcopy(made).float().eval()(tokens)[0]
            error = ((found - wanted).norm() / wanted.norm().clamp_min(1e-20)).item()
            if error < _FAR:
                return made
            best = min(best, error)
    raise ValueError(
        f"no reading of {type(block).__name__} gives its answers; the nearest is off by {best:.2g}. "
        "Build the mixture with FeedForward.of and a router."
    )


def _made(part: Any, refinements: list[Callable[[Sparse], Sparse]]) -> Mixture:
    gate, experts = part.gate, part.experts
    E, D = gate.weight.shape
    score = Dot(D, E).to(gate.weight)
    score.weight.data.copy_(gate.weight)
    router = ComposedRouter(score, _adjustments(gate), partial(top_k, k=gate.top_k), refinements)
    made = FeedForward.of(experts.gate_up_proj, experts.down_proj, activation=_activation(experts.act_fn))
    return Mixture(router, made, _shared(part))


def _adjustments(gate: Any) -> list[Adjustment]:
    correction = getattr(gate, "e_score_correction_bias", None)
    if correction is not None:
        bias = Bias(len(correction)).to(correction)
        bias.bias.copy_(correction)
        return [Sigmoid(), bias, GroupLimit(groups=gate.num_group, keep=gate.topk_group)]
    if getattr(gate, "topk_method", None) == "group_limited_greedy":
        return [Softmax(), GroupLimit(groups=gate.num_group, keep=gate.topk_group, best=1)]
    return [Softmax()]


def _refinements(gate: Any) -> list[list[Callable[[Sparse], Sparse]]]:
    """What may be done to the weights; a gate that does not say is one that always does the same."""
    scale = getattr(gate, "routed_scaling_factor", 1.0)
    told = getattr(gate, "norm_topk_prob", None)
    ways = {True: [partial(renormalise, scale=scale)], False: [] if scale == 1 else [partial(scaled, scale=scale)]}
    return [ways[bool(told)]] if told is not None else list(ways.values())


def _activation(function: Callable[[torch.Tensor], torch.Tensor]) -> Activation:
    probe = torch.linspace(-4, 4, 17)
    return SWIGLU if torch.equal(function(probe), F.silu(probe)) else Activation(fan=2, apply=Gate(function))


def _shared(part: Any) -> Experts | None:
    if hasattr(part, "shared_experts"):
        return dense(part.shared_experts)
    if not hasattr(part, "shared_expert"):
        return None
    gated = Gated(dense(part.shared_expert), part.shared_expert_gate.in_features).to(part.shared_expert_gate.weight)
    gated.gate.data.copy_(part.shared_expert_gate.weight[None])
    return gated
