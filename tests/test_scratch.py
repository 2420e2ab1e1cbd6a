"""Networks with random weights: what they cost, and that they can learn from nothing."""

from typing import Any

import pytest
import torch
from tiny_pictures import shapes
from tiny_vit import NARROWED, tiny

from nestor.models.scratch import cheaper, scratch
from nestor.training import Fit, Fixed, fit, predict

SIZES: dict[str, Any] = {"side": 16, "patch": 4, "width": 24, "depth": 2, "heads": 4}


def sized(**changes: Any) -> dict[str, Any]:
    return SIZES | changes


def test_equal_seeds_are_equal_networks_and_the_generator_stays():
    before = torch.random.get_rng_state()
    first, again, other = (scratch(("a", "b"), **SIZES, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


@pytest.mark.parametrize(("prefix", "head"), [(0, "mean"), (1, "class_mean")])
def test_random_weights_neither_explode_nor_vanish(prefix: int, head: str):
    model = scratch(("a", "b", "c"), **sized(width=64, depth=6), prefix=prefix, head=head)
    output = model(torch.randn(8, 3, 16, 16))
    assert output.tokens.shape == (8, 16 + prefix, 64)
    assert output.logits is not None
    assert 0.05 < output.logits.std() < 2
    output.logits.square().sum().backward()
    gradients = [block.attention.inward.grad for block in model.blocks]
    sizes = [gradient.norm().item() for gradient in gradients if gradient is not None]
    assert len(sizes) == 6
    assert max(sizes) < 20 * min(sizes)


@pytest.mark.usefixtures("one_thread")
def test_it_learns_from_nothing():
    pictures = shapes(24)
    like: dict[str, Any] = {"mean": pictures.mean, "std": pictures.std, "prefix": 1, "head": "class_mean"}
    model = scratch(pictures.classes, **SIZES, **like)
    how = Fit(epochs=20, batch=8, rate=0.03, warmup=0.1, budgets=Fixed())
    before, after = (predict(network, pictures) for network in (model, fit(model, pictures, how, cpu=True)))
    losses = [torch.nn.functional.cross_entropy(*each) for each in (before, after)]
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("budget", [1.0, 0.8, 0.5, 0.25, 0.1])
def test_a_cheaper_network_costs_what_it_may(budget: float):
    model = scratch(("a", "b"), **sized(width=64))
    narrow = cheaper(model, budget, seed=1)
    unit = 2 * 2 * narrow.settings.nest.widths[0] * 16
    assert budget * model.full_macs(16) - unit < narrow.full_macs(16) <= budget * model.full_macs(16)
    width, hidden = narrow.settings.nest.widths[0], narrow.settings.nest.hidden[0]
    assert width % 4 == 0
    assert 4 * width <= hidden < 8 * width
    assert narrow.settings.depth == model.settings.depth
    assert narrow(torch.randn(1, 3, 16, 16)).logits is not None


def test_networks_that_cannot_be():
    with pytest.raises(ValueError, match="must divide the side and the heads the width; got 5 and 16, 4 and 24"):
        scratch(("a",), **sized(patch=5))
    with pytest.raises(ValueError, match="follows from one with 1 expert; got 4"):
        cheaper(tiny(NARROWED, classes=2), 0.5)
    with pytest.raises(ValueError, match=r"of width 4, costs more than 0\.001"):
        cheaper(scratch(("a", "b"), **SIZES), 0.001)
