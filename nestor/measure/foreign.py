"""Decisions of the mixtures of transformers, read from their router logits as routings of ours."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, final

from nestor.routing.adjust import Adjustment, Bias, GroupLimit, Sigmoid, Softmax
from nestor.routing.choose import top_k
from nestor.routing.refine import renormalise
from nestor.routing.router import ComposedRouter
from nestor.routing.score import Score
from nestor.types import Signal, Sparse

if TYPE_CHECKING:
    from torch import Tensor, nn

SOFTMAX = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
FAMILIES = (*SOFTMAX, "deepseek_v2", "deepseek_v3")


@final
class AsGiven(Score):
    """Scores that were computed elsewhere and come in the place of tokens."""

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, E) -> the same."""
        return tokens

    def macs(self, tokens: int) -> int:
        """None."""
        return 0


def routings(model: nn.Module, output: Any, mask: Tensor) -> tuple[Sparse, ...]:
    """The decisions of all mixtures of a transformers network, first layer first, as it made them.

        output = model(**batch, output_router_logits=True)
        layers = routings(model, output, batch["attention_mask"].bool())

    Indices and weights are recomputed from the logits by the family's own rules; ties may fall otherwise. The logits
    keep their graph, so that balance losses of ours reach the network's routers.

    Args:
        model: a network of one of FAMILIES.
        output: what it returned, with `router_logits`.
        mask: (B, T), true where a token counts; it tells the shape too.

    Raises:
        ValueError: when the family is not known, or the output has no router logits of this many tokens.
    """
    config: Any = model.config
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise ValueError(
            f"routers can be read of {', '.join(FAMILIES)}; got {kind!r}. Build a ComposedRouter with AsGiven for it."
        )
    logits = getattr(output, "router_logits", None)
    if not logits or any(len(layer) != mask.numel() for layer in logits):
        got = None if not logits else [len(layer) for layer in logits]
        raise ValueError(
            f"an output needs router logits of {mask.numel()} tokens; got {got}. Call with output_router_logits=True."
        )
    found = []
    for layer, rows in enumerate(logits):
        router = _router(model, config, kind, layer)
        routing = router(rows.unflatten(0, tuple(mask.shape)), Signal(mask=mask))
        assert isinstance(routing, Sparse)
        found.append(routing)
    return tuple(found)


def _router(model: nn.Module, config: Any, kind: str, layer: int) -> ComposedRouter:
    choice = partial(top_k, k=config.num_experts_per_tok)
    if kind in SOFTMAX:
        refinements = [renormalise] if getattr(config, "norm_topk_prob", True) else []
        return ComposedRouter(AsGiven(), [Softmax()], choice, refinements)
    scale = partial(scaled, scale=config.routed_scaling_factor)
    if kind == "deepseek_v2":
        limited = config.topk_method == "group_limited_greedy"
        groups = [GroupLimit(groups=config.n_group, keep=config.topk_group, best=1)] if limited else []
        return ComposedRouter(AsGiven(), [Softmax(), *groups], choice, [scale])
    held = [tensor for name, tensor in model.state_dict().items() if name.endswith("e_score_correction_bias")][layer]
    bias = Bias(len(held)).to(held.device)
    bias.bias.copy_(held)
    adjustments: list[Adjustment] = [Sigmoid(), bias, GroupLimit(groups=config.n_group, keep=config.topk_group)]
    return ComposedRouter(AsGiven(), adjustments, choice, [*([renormalise] if config.norm_topk_prob else []), scale])


def scaled(routing: Sparse, *, scale: float) -> Sparse:
    """The same choice with all weights times a number."""
    return Sparse(routing.scores, routing.index, routing.weight * scale, routing.origin)
