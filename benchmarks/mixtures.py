"""Who takes part in a race of mixture layers: ours, packaged ones, and the dense layer of equal active work."""

from __future__ import annotations

import copy
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import runtimes
from benchmarks.record import Candidate
from benchmarks.rivals import reach_rivals
from nestor.experts.feedforward import SWIGLU, FeedForward
from nestor.layers.mixture import Mixture
from nestor.measure.cost import parameters
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.refine import renormalise
from nestor.routing.router import ComposedRouter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.candidates import Entry
    from benchmarks.settings import Cell, Layer

# Copying each token's weights, as transformers' third way does, takes tens of gigabytes here.
WAYS = ("eager", "grouped_mm")


@final
class Answer(nn.Module):
    """The first of what a layer gives back."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.layer(tokens)[0]


@final
class Dense(nn.Module):
    """A SwiGLU network with as many hidden units as all chosen experts together."""

    def __init__(self, layer: Layer):
        super().__init__()
        hidden = layer.chosen * layer.hidden
        self.inward = nn.Linear(layer.width, 2 * hidden, bias=False)
        self.outward = nn.Linear(hidden, layer.width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        gate, value = self.inward(tokens).chunk(2, -1)
        return self.outward(F.silu(gate) * value)


def ours(layer: Layer) -> Mixture:
    """Mixtral's layer put together from our parts."""
    router = ComposedRouter(Dot(layer.width, layer.experts), [Softmax()], partial(top_k, k=layer.chosen), [renormalise])
    return Mixture(router, FeedForward(layer.width, layer.hidden, layer.experts, activation=SWIGLU, bias=False))


def mixtral(layer: Layer, like: Mixture, way: str) -> nn.Module:
    """Mixtral's layer in transformers with the same weights.

    Raises:
        UnavailableError: transformers is missing.
    """
    reach_rivals()
    try:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    except ImportError as error:
        raise runtimes.UnavailableError("transformers is not installed") from error
    config = MixtralConfig(
        hidden_size=layer.width,
        intermediate_size=layer.hidden,
        num_local_experts=layer.experts,
        num_experts_per_tok=layer.chosen,
        hidden_act="silu",
    )
    config._experts_implementation = way
    block, own = MixtralSparseMoeBlock(config), like.state_dict()
    names = {
        "gate.weight": "router.score.weight",
        "experts.gate_up_proj": "experts.inward",
        "experts.down_proj": "experts.outward",
    }
    block.load_state_dict({foreign: own[name] for foreign, name in names.items()})
    return block


def packaged(layer: Layer) -> nn.Module:
    """The layer of the package mixture-of-experts; it has two experts a token, and drops what exceeds a capacity.

    Its networks have one matrix less than SwiGLU's, hence half as many hidden units again for equal work.

    Raises:
        UnavailableError: it is missing, or cannot choose so many experts.
    """
    if find_spec("mixture_of_experts") is None:
        raise runtimes.UnavailableError("mixture-of-experts is not installed")
    if layer.chosen != 2:
        raise runtimes.UnavailableError("it always chooses two experts")
    from mixture_of_experts import MoE

    made = cast("Any", MoE)(layer.width, layer.experts, layer.hidden * 3 // 2, nn.GELU)
    return Answer(made)


def layer_entries(layer: Layer, cell: Cell, seed: int = 0) -> Iterator[Entry]:
    """Candidates with what prepares them; the work of all mixtures is that of experts which serve every token."""
    kind = getattr(torch, cell.precision)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mixture, dense = ours(layer), Dense(layer)
        tokens = torch.randn(cell.batch, layer.tokens, layer.width)
    each = layer.tokens * layer.chosen * mixture.experts.costs[0]
    routed, whole = each + mixture.router.macs(layer.tokens), parameters(mixture)
    made = partial(Candidate, budget=1.0, macs=routed, weights=whole)

    def run(build: Any) -> Any:
        network = build()
        if cell.work == "step":
            return runtimes.step(network, tokens, cell.precision)
        return runtimes.predict(network.to(kind), tokens.to(kind))

    yield (
        Candidate(name="dense", kind="dense", budget=1.0, macs=each, weights=parameters(dense)),
        partial(run, lambda: dense),
    )
    # A copy, since casting to half precision would change the weights that others take over.
    yield made(name="ours", kind="mixture"), partial(run, lambda: Answer(copy.deepcopy(mixture)))
    for way in WAYS:
        yield made(name=f"transformers {way}", kind="rival"), partial(run, partial(mixtral, layer, mixture, way))
    yield made(name="mixture-of-experts", kind="rival"), partial(run, partial(packaged, layer))
