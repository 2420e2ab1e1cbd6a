"""Laws that every layer obeys: mixtures, attention whose heads are experts, blocks, and what stands in their places."""

import copy
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from inspect import isclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import ROUTERS, D, E, randomised, signal
from safetensors.torch import load, save
from torch import Tensor, nn

import nestor.layers
from nestor.experts.feedforward import FeedForward
from nestor.experts.linear import Linear
from nestor.experts.lowrank import Bottleneck, Kronecker
from nestor.layers import nested
from nestor.layers.amended import Amended
from nestor.layers.angular import AngularAttention, binary
from nestor.layers.block import Block, Dense, SelfAttention
from nestor.layers.causal import Causal
from nestor.layers.fixed_point import FixedPointBlock, StreamedAttention
from nestor.layers.heads import ChosenHeads, SeparateHeads
from nestor.layers.mixture import Mixture
from nestor.layers.nested import Nest, NestedBlock
from nestor.layers.queries import MixedBlock, QueryMixture
from nestor.layers.routed import RoutedBlock
from nestor.layers.together import Blended, Together
from nestor.ops.bands import sort
from nestor.ops.rounded import FixedPoint
from nestor.types import Experts, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")


def one() -> FeedForward:
    made = randomised(FeedForward(D, 6, 1))
    assert isinstance(made, FeedForward)
    return made


def mixture(experts: Experts | None = None) -> Mixture:
    return Mixture(ROUTERS["mixtral"](), randomised(FeedForward(D, 6, E) if experts is None else experts))


def blended() -> Blended:
    experts = randomised(Bottleneck(D, 3, E, scale=0.5))
    assert isinstance(experts, Bottleneck)
    return Blended(experts, ROUTERS["pooled"]())


def queries() -> QueryMixture:
    return QueryMixture(D, ROUTERS["mixtral"](), Linear(D, E, out=4), Linear(4, E, out=D), size=4)


class Banded(nn.Module):
    """A layer of nested experts, called as others are: the first half of an item's tokens is narrow, the rest wide."""

    NEST = Nest(widths=(4, D), hidden=(3, 6), heads=(1, 2), own=True)

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, tokens: Tensor) -> Tensor:
        B, T, _ = tokens.shape
        index = (torch.arange(T) >= T // 2).long().expand(B, T).unsqueeze(-1)
        routing = Sparse(torch.full((B, T, 2), 0.5), index, torch.full((B, T, 1), 0.5))
        bands, order = sort(tokens, routing, (T // 2, T - T // 2), self.NEST.widths, 0)
        rows = [
            torch.cat([band.rows, band.rows.new_zeros(B, band.rows.shape[1], D - band.rows.shape[-1])], -1)
            for band in self.layer(bands)
        ]
        found = torch.cat(rows, 1)
        return torch.zeros_like(found).scatter(1, order.unsqueeze(-1).expand_as(found), found)


FINE = FixedPoint(bits=32, whole=10)
# Called with tokens and a signal; all know what padding is but those named below.
ROUTED: dict[str, Callable[[], nn.Module]] = {
    "mixture": mixture,
    "dense": lambda: Dense(one()),
    "together": lambda: Together([mixture(), Dense(one()), blended()]),
    "blended": blended,
    "amended": lambda: Amended(
        one(), ROUTERS["mixtral"](), randomised(Kronecker(D, 2, 3, E, out=6)), randomised(Kronecker(6, 2, 3, E, out=D))
    ),
    "chosen_heads": lambda: ChosenHeads(D, E, ROUTERS["mixtral"](), each=3),
    "separate_heads": lambda: SeparateHeads(D, E, ROUTERS["mixtral"](), each=3),
    "causal": lambda: Causal(SeparateHeads(D, E, ROUTERS["mixtral"](), each=3)),
    "queries": queries,
    "routed_block": lambda: RoutedBlock(D, ChosenHeads(D, E, ROUTERS["mixtral"]()), mixture()),
    "mixed_block": lambda: MixedBlock(D, queries(), mixture()),
    "block": lambda: Block(D, SelfAttention(D, 2), mixture()),
    "fixed_point_block": lambda: FixedPointBlock(Block(D, SelfAttention(D, 2), Dense(one())), FINE),
}
# Called with tokens alone.
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "self_attention": lambda: SelfAttention(D, 2),
    "angular": lambda: AngularAttention(D, 2),
    "angular_binary": lambda: AngularAttention(D, 2, binary),
    "streamed": lambda: StreamedAttention(SelfAttention(D, 2), FINE),
    "nested_attention": lambda: Banded(nested.Attention(Banded.NEST, 1e-6)),
    "nested_feedforward": lambda: Banded(nested.FeedForward(Banded.NEST, 1e-6, "gelu")),
    "nested_block": lambda: Banded(NestedBlock(Banded.NEST, 1e-6, "gelu")),
}
LAYERS = ROUTED | PLAIN
MASKED = ["mixture", "dense", "together", "blended", "amended", "chosen_heads", "separate_heads", "causal"]
# A token's place says how wide it is, or which tokens are near.
OF_PLACE = {"causal", "nested_attention", "nested_feedforward", "nested_block", "angular", "angular_binary"}
# Rounded on purpose; what is fixed-point is there to be run, and passes no gradients.
FIXED = {"fixed_point_block", "streamed"}
ROUNDED = FIXED | {"angular_binary"}
# What stands at an end of a network, takes or gives no tokens, and has tests of its own.
ENDS = {"Slot", "PatchEmbed", "Readout", "Head", "AttentionPool", "MapHead", "OfMean", "OfPixels", "OfClassToken"}
# The first learns nothing, so that no gradient can be asked of it; the second wants a GPU, or much patience. Tests of
# their own hold them against the layers they are made of.
APART = {"Int8Block", "FusedBlock"}

INPUTS = {
    "constant": torch.ones(2, 6, D),
    "zero": torch.zeros(2, 6, D),
    "huge": torch.randn(2, 6, D, generator=torch.Generator().manual_seed(1)) * 1e3,
    "tiny": torch.randn(2, 6, D, generator=torch.Generator().manual_seed(1)) * 1e-30,
    "single": torch.ones(1, 1, D),
    "no tokens": torch.ones(2, 0, D),
    "no items": torch.ones(0, 6, D),
}


def made(name: str) -> nn.Module:
    """A layer with numbers in place of the zeros that some begin with."""
    layer = LAYERS[name]()
    for parameter in layer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.5)
        parameter.data.copy_(parameter.data.bfloat16())
    return layer


def answer(layer: Any, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    B, T, _ = tokens.shape
    known = replace(signal(B, T, mask), task=torch.zeros(B, dtype=torch.long))
    found = layer(tokens, known) if type(layer) in {type(build()) for build in ROUTED.values()} else layer(tokens)
    return found if isinstance(found, Tensor) else found[0]


def test_no_layer_is_forgotten():
    found = set()
    for path in Path(nestor.layers.__path__[0]).glob("[!_]*.py"):
        parts = vars(import_module(f"nestor.layers.{path.stem}")).values()
        found |= {
            part
            for part in parts
            if isclass(part)
            and issubclass(part, nn.Module)
            and part.__module__ == f"nestor.layers.{path.stem}"
            and not part.__name__.startswith("_")
        }
    met = {type(part) for build in LAYERS.values() for part in build().modules()}
    assert {kind.__name__ for kind in found - met} == ENDS | APART


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", INPUTS)
def test_answers_and_gradients_are_numbers_whatever_the_tokens(name, kind):
    if kind == "no tokens" and name.startswith("nested"):
        pytest.skip("bands hold the tokens of an expert, and there are none without any")
    layer, tokens = made(name), INPUTS[kind]
    found = answer(layer, tokens)
    assert found.shape == tokens.shape
    assert found.isfinite().all()
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - FIXED))
def test_every_parameter_learns(name):
    layer = made(name)
    for _ in range(3):
        (answer(layer, torch.randn(4, 8, D)) * torch.randn(4, 8, D)).sum().backward()
    for key, parameter in layer.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.any()), key


@pytest.mark.parametrize("name", LAYERS)
def test_other_items_change_nothing(name):
    layer, tokens = made(name).eval(), torch.randn(3, 6, D)
    torch.testing.assert_close(answer(layer, tokens)[:1], answer(layer, tokens[:1]))


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - OF_PLACE))
def test_permuting_tokens_permutes_answers(name):
    layer, tokens, order = made(name).eval(), torch.randn(2, 6, D), torch.randperm(6)
    torch.testing.assert_close(answer(layer, tokens)[:, order], answer(layer, tokens[:, order]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - ROUNDED))
def test_half_precision_stays_near_single(name):
    layer, tokens = made(name).eval(), torch.randn(2, 6, D).bfloat16()
    single = answer(layer, tokens.float())
    half = answer(copy.deepcopy(layer).bfloat16(), tokens)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, rtol=0.1, atol=0.1 * (1 + single.abs().max().item()))


@pytest.mark.parametrize("name", LAYERS)
def test_saved_and_loaded_a_layer_answers_the_same(name):
    layer, other, tokens = made(name).eval(), made(name).eval(), torch.randn(2, 6, D)
    other.load_state_dict(load(save(layer.state_dict())))
    assert torch.equal(answer(layer, tokens), answer(other, tokens))


@pytest.mark.parametrize("name", MASKED)
def test_padding_equals_absence_and_gets_zero(name):
    layer, tokens, mask = made(name).eval(), torch.randn(2, 9, D), torch.arange(9).expand(2, 9) < 6
    spoilt = tokens.masked_fill(~mask.unsqueeze(-1), torch.nan)
    found = answer(layer, spoilt, mask)
    torch.testing.assert_close(found[:, :6], answer(layer, tokens[:, :6]))
    assert not found[:, 6:].any()
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
    assert not answer(layer, spoilt, torch.zeros_like(mask)).any()


@pytest.mark.parametrize("name", ["queries", "mixed_block"])
def test_layers_that_know_no_padding_say_so(name):
    with pytest.raises(ValueError, match="know no padding; got a mask"):
        answer(made(name), torch.randn(2, 5, D), torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.parametrize("name", ["mixture", "chosen_heads", "separate_heads", "queries", "amended", "blended"])
def test_all_of_the_router_reaches_the_decision_returned(name):
    layer: Any = made(name)
    _, (routing,) = layer(torch.randn(2, 5, D), signal(2, 5))
    assert isinstance(routing, Sparse)
    assert routing.index.shape[:2] == (2, 5)
    assert routing.scores.requires_grad
    assert layer.macs(routing, (2, 5, D)) > 0
