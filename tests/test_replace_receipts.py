"""A receipt for every conversion there is: how much the answers changed, and how many parameters there are."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import ROUTERS, D, E, randomised
from nets import small
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

import nestor.surgery
from nestor.experts.feedforward import FeedForward
from nestor.experts.gated import Scaled
from nestor.layers.answers import OfMean, OfPixels
from nestor.layers.block import Block, Dense, SelfAttention
from nestor.layers.heads import ChosenHeads, taken
from nestor.layers.mixture import Mixture
from nestor.layers.routed import RoutedBlock
from nestor.models.composed import Composed, stack, tiny
from nestor.models.tasked import Tasked, every_second, grey_patches, modular_block, modular_router
from nestor.models.vit import ViT
from nestor.routing.always import everyone
from nestor.surgery.allocate import allocate
from nestor.surgery.always import without_routed
from nestor.surgery.average import averaged
from nestor.surgery.basis import by_importance, rotate
from nestor.surgery.block import mixture
from nestor.surgery.calibrate import compensate
from nestor.surgery.chance import drawn, scattered
from nestor.surgery.exchange import with_attention, with_layers
from nestor.surgery.fixed_point import fixed_point
from nestor.surgery.freeze import only
from nestor.surgery.fuse import fuse
from nestor.surgery.grow import emerge, extend, fill, upcycle
from nestor.surgery.heads import cut_heads
from nestor.surgery.modules import cut, extended
from nestor.surgery.nest import nest, with_head
from nestor.surgery.quantize import measured, portable, quantize, quantized
from nestor.surgery.replace import receipt, replace
from nestor.surgery.shifts import primitives
from nestor.surgery.shrink import keep, merge, undo
from nestor.surgery.start import as_published, perturbed, routed, unrotated
from nestor.types import Output, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

ALL, EXACT = 1e9, 1e-5
PICTURES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is converted and how, what both are called with, and the greatest relative error there may be."""

    before: Callable[[], nn.Module]
    convert: Callable[[Any], nn.Module]
    inputs: tuple[object, ...]
    most: float = EXACT


def vit(name: str = "dense", **changes: Any) -> ViT:
    return small(name, **changes)


def composed(*, routed_heads: bool = False) -> Composed:
    block = RoutedBlock if routed_heads else Block
    attention: Any = ChosenHeads(D, 4, everyone(4)) if routed_heads else SelfAttention(D, 4)
    made = tiny(D, [block(D, attention, Dense(FeedForward(D, 6, 1)))])  # pyright: ignore[reportArgumentType]
    nn.init.normal_(made.head.weight)
    return made


def mixed(experts: int = E) -> Composed:
    made = tiny(D, stack(D, 4, [Mixture(ROUTERS["mixtral"](), randomised(FeedForward(D, 6, experts)))]))
    nn.init.normal_(made.head.weight)
    return made


def shared() -> Composed:
    layer = Mixture(ROUTERS["mixtral"](), randomised(FeedForward(D, 6, E)), FeedForward(D, 6, 1))
    made = tiny(D, stack(D, 4, [layer]))
    nn.init.normal_(made.head.weight)
    return made


def foreign() -> nn.Module:
    settings = MixtralConfig(hidden_size=8, intermediate_size=12, num_local_experts=4, num_experts_per_tok=2)
    made = MixtralSparseMoeBlock(settings)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def tasked(*, modular: bool = True) -> Tasked:
    blocks: Any = (
        [modular_block(D, tasks=2, experts=4, choices=2)] if modular else stack(D, 2, every_second(1, D, None))
    )
    return Tasked(grey_patches(D, 8, 4), blocks, [OfMean(D, 3), OfPixels(D, 4, 1)])


def scaled(experts: Any) -> Scaled:
    return Scaled(experts, 1.0)


def merged(layer: Mixture) -> Dense:
    return Dense(merge(layer))


def undone(model: Composed) -> Composed:
    (routing,) = model(LARGE).routings
    assert isinstance(routing, Sparse)
    return undo(model, 0, routing)


def equal_experts() -> Mixture:
    return Mixture(ROUTERS["mixtral"](), upcycle(one(), E))


def one() -> FeedForward:
    made = randomised(FeedForward(D, 12, 1))
    assert isinstance(made, FeedForward)
    return made


LARGE, GREY = torch.randn(2, 3, 28, 28), torch.randn(2, 1, 8, 8)
FULL, TOKENS = (PICTURES,), (torch.randn(2, 5, D),)
CASES: dict[str, Case] = {
    "nest": Case(before=vit, convert=partial(nest, images=PICTURES), inputs=FULL),
    "unrotated": Case(before=vit, convert=partial(unrotated, images=PICTURES), inputs=FULL),
    "as_published": Case(before=vit, convert=lambda m: as_published(m, PICTURES), inputs=FULL),
    "routed": Case(before=vit, convert=partial(routed, images=PICTURES, scores=("linear",)), inputs=FULL),
    "perturbed": Case(before=vit, convert=partial(perturbed, images=PICTURES), inputs=FULL),
    "rotate": Case(before=vit, convert=partial(rotate, turn=torch.eye(24).flip(0)), inputs=FULL),
    "by_importance": Case(before=vit, convert=partial(by_importance, images=PICTURES), inputs=FULL),
    "compensate": Case(
        before=lambda: nest(vit(), PICTURES, compensated=False),
        convert=lambda m: compensate(m, vit(), PICTURES, 0.6),
        inputs=(PICTURES, 0.6),
        most=ALL,
    ),
    "allocate": Case(before=partial(vit, "default"), convert=partial(allocate, images=PICTURES, steps=2), inputs=FULL),
    "quantize": Case(before=partial(vit, "own"), convert=partial(quantize, images=PICTURES), inputs=FULL, most=0.05),
    "quantized": Case(
        before=partial(vit, "own"),
        convert=lambda m: quantized(m, measured(m, PICTURES)),
        inputs=(PICTURES, 0.6),
        most=0.05,
    ),
    "portable": Case(
        before=partial(vit, "own"),
        convert=lambda m: portable(m, measured(m, PICTURES)),
        inputs=(PICTURES, 0.6),
        most=0.05,
    ),
    "fuse": Case(before=partial(vit, "own"), convert=fuse, inputs=FULL),
    "averaged": Case(before=vit, convert=lambda m: averaged([m, m]), inputs=FULL),
    "with_head": Case(before=partial(vit, classes=0), convert=partial(with_head, labels=("a", "b")), inputs=FULL),
    "only": Case(before=vit, convert=partial(only, patterns="head.*"), inputs=FULL),
    "replace": Case(
        before=composed,
        convert=partial(replace, patterns="blocks.*.layer.experts", build=scaled),
        inputs=(LARGE,),
    ),
    "fill": Case(before=composed, convert=lambda m: fill(mixed(), m), inputs=(LARGE,)),
    "undo": Case(before=lambda: fill(mixed(), composed()), convert=undone, inputs=(LARGE,)),
    "cut_heads": Case(
        before=partial(composed, routed_heads=True), convert=partial(cut_heads, heads=4, always=2), inputs=(LARGE,)
    ),
    "with_attention": Case(
        before=composed,
        convert=partial(with_attention, build=lambda a: taken(ChosenHeads(D, 4, everyone(4)), a)),
        inputs=(LARGE,),
    ),
    "with_layers": Case(
        before=composed,
        convert=partial(with_layers, build=lambda layer: Mixture(ROUTERS["mixtral"](), upcycle(layer.experts, E))),
        inputs=(LARGE,),
    ),
    "fixed_point": Case(before=partial(tasked, modular=False), convert=fixed_point, inputs=(GREY, 0), most=0.01),
    "cut": Case(before=tasked, convert=partial(cut, kept=[range(4)] * 2), inputs=(GREY, 1)),
    "extended": Case(
        before=tasked,
        convert=lambda m: extended(m, OfMean(D, 5), lambda _, n: modular_router(D, n, 2), more=1),
        inputs=(GREY, 1),
    ),
    "extend": Case(before=equal_experts, convert=partial(extend, more=FeedForward(D, 6, 2)), inputs=TOKENS),
    "keep": Case(before=equal_experts, convert=partial(keep, experts=(3, 1, 0, 2)), inputs=TOKENS),
    "merge": Case(before=equal_experts, convert=merged, inputs=TOKENS),
    "emerge": Case(before=lambda: Dense(one()), convert=lambda m: emerge(m.experts, 4, 4), inputs=TOKENS),
    "scattered": Case(before=lambda: Dense(one()), convert=lambda m: scattered(m.experts, 4, 4), inputs=TOKENS),
    "drawn": Case(before=mixed, convert=drawn, inputs=(LARGE,), most=ALL),
    "without_routed": Case(before=shared, convert=partial(without_routed, numbers=(0,)), inputs=(LARGE,), most=ALL),
    "mixture": Case(before=foreign, convert=mixture, inputs=(torch.randn(2, 5, 8),)),
    "primitives": Case(before=lambda: Dense(one()), convert=partial(primitives, noise=0.1), inputs=TOKENS, most=ALL),
}
TAKEN = {"ViT", "Sequence[ViT]", "Composed", "Tasked", "Mixture", "Dense", "FeedForward", "nn.Module", "Net"}
GIVEN = {"ViT", "VideoViT", "Composed", "Tasked", "Mixture", "FeedForward", "Rounded", "nn.Module", "Net"}
# These give experts, which stand in a network but are none, or a network that is called with clips.
OTHERWISE = {"dense", "upcycle", "split", "join", "sliced", "rounded", "inflate"}


@pytest.mark.parametrize("name", CASES)
def test_a_conversion_has_a_receipt(name: str):
    case = CASES[name]
    before = case.before().train()
    after = case.convert(before)
    given = receipt(before, after, *case.inputs)
    assert 0 <= given.error <= case.most
    assert given.before == sum(p.numel() for p in before.parameters())
    assert given.after == sum(p.numel() for p in after.parameters())
    assert before.training
    # A receipt that says zero of everything would be none. Some conversions share parts with what they were given.
    after = copy.deepcopy(after)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert receipt(before, after, *case.inputs).error > 0


def test_every_conversion_has_its_case():
    found = set()
    for path in Path(nestor.surgery.__path__[0]).glob("[!_]*.py"):
        module = import_module(f"nestor.surgery.{path.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            kinds = list(inspect.get_annotations(function).values())
            public = function.__module__ == module.__name__ and not name.startswith("_")
            if public and len(kinds) > 1 and kinds[0] in TAKEN and kinds[-1] in GIVEN:
                found.add(name)
    assert found == CASES.keys() | OTHERWISE


class Answers(nn.Module):
    """Gives what it was made with."""

    def __init__(self, answer: object):
        super().__init__()
        self.answer = answer

    def forward(self, tokens: Tensor) -> object:
        return self.answer


def test_receipts_read_tokens_where_there_is_no_head_and_name_what_they_cannot_read():
    tokens = torch.randn(2, 5, 3)
    bare, headed = (Answers(Output(logits, (), lambda: tokens)) for logits in (None, torch.randn(2, 4)))
    other = Answers(Output(torch.randn(2, 4), (), lambda: tokens))
    assert receipt(bare, headed, tokens).error == receipt(headed, bare, tokens).error == 0
    assert receipt(headed, other, tokens).error > 0
    for answer in ("text", (), None, (None,)):
        with pytest.raises(ValueError, match="a receipt needs answers that hold a tensor; got"):
            receipt(Answers(answer), headed, tokens)
