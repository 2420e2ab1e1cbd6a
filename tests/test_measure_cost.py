from contextlib import contextmanager
from math import prod

import pytest
import torch
from tiny_vit import DENSE, NARROWED, OWN, PUBLISHED, SKIPPING, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nestor.layers.readout import HEADS
from nestor.measure.cost import cost, patches, weight_bytes
from nestor.models.merged import Merged
from nestor.models.uniform import Uniform


@contextmanager
def counting():
    """Torch's own counter; its list lacks matrix times vector, and fused attention on a processor."""
    vector = {torch.ops.aten.mv: lambda matrix, *_, **__: 2 * prod(matrix)}
    with (
        FlopCounterMode(display=False, custom_mapping=vector) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        yield counter


def counted(model, images, budget):
    with counting() as counter:
        model(images, budget)
    return counter.get_total_flops() / 2


CASES = [(DENSE, "class"), (PUBLISHED, "class"), (PUBLISHED, None), (SKIPPING, None), (OWN, "class")]
CASES += [(nest, head) for nest in (NARROWED, SKIPPING) for head in HEADS]


@pytest.mark.parametrize(("nest", "head"), CASES)
def test_macs_are_those_of_the_network_as_it_runs(nest, head):
    model = tiny(nest, prefix=2, **({} if head is None else {"classes": 3, "head": head}))
    images = torch.randn(1, 3, 16, 24)
    for budget in (1.0,) if nest is DENSE else (1.0, 0.75, model.least_budget(24)):
        found = cost(model, (16, 24), budget)
        with counting() as counter:
            output = model(images, budget)
            assert found.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.01)
            assert output.tokens.shape == (1, 26, 24)
            assert found.macs + found.readout_macs == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


@pytest.mark.parametrize("changes", [{"activation": "swiglu"}, {"embed_norm": True}, {"prefix": 0, "head": "mean"}])
def test_macs_know_every_kind_of_network(changes):
    model = tiny(NARROWED, classes=3, **changes)
    found = counted(model, torch.randn(1, 3, 16, 16), 0.7)
    assert cost(model, 16, 0.7).macs == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("head", ["class", "class_mean", "attention"])
def test_macs_of_merging_include_the_matching(head):
    model = Merged(tiny(classes=3, head=head, prefix=1))
    images = torch.randn(1, 3, 24, 24)
    for budget in (1.0, 0.9, 0.8):
        plan = model.plan(36, budget)
        assert model.macs(plan) == pytest.approx(counted(model, images, budget), rel=0.01)
        assert model.macs(plan) <= budget * model.full_macs(36)


@pytest.mark.parametrize("nest", [PUBLISHED, SKIPPING])
def test_macs_of_one_width(nest):
    model = Uniform(tiny(nest, classes=3))
    images = torch.randn(1, 3, 16, 16)
    for budget in (1.0, model.least_budget(16)):
        expected = counted(model, images, budget)
        assert model.macs(model.plan(16, budget)) == pytest.approx(expected, rel=0.01)


def test_the_parts_make_up_the_whole():
    model = tiny(NARROWED, classes=3)
    full, half = cost(model, 16), cost(model, 16, 0.6)
    assert sum(half.parts.values()) == half.macs == model.macs(model.plan(16, 0.6))
    assert full.macs == full.full_macs == half.full_macs
    assert (full.ratio, half.ratio <= 0.6) == (1, True)
    assert set(half.parts) == {"embed", "router", "attention", "feedforward", "merging", "head"}


def test_parameters_and_bytes():
    model = tiny(depth=3)
    found = cost(model, 16)
    # Three blocks of 12 D^2 without biases, all of which every token meets.
    assert found.active_parameters == 3 * (4 * 24 * 24 + 2 * 24 * 48)
    assert found.weight_bytes == 4 * found.parameters
    assert weight_bytes(model.to(torch.bfloat16)) == 2 * found.parameters


def test_fewer_weights_are_active_at_a_lower_budget():
    model = tiny(NARROWED)
    assert cost(model, 16, 0.6).active_parameters < cost(model, 16).active_parameters


@pytest.mark.parametrize("size", [15, (16, 6), 0])
def test_a_size_that_the_patches_do_not_divide_is_refused(size):
    with pytest.raises(ValueError, match="size must be a multiple of the patch, 4; got"):
        patches(tiny(), size)
