import pytest
import torch
from tiny_vit import tiny

from nestor.layers.nested import Nest
from nestor.measure.memory import peak_bytes
from nestor.surgery.nest import nest, published, shape


def test_what_lives_at_once_counts_and_what_was_there_before_does_not():
    x = torch.zeros(250)

    def one_after_the_other() -> torch.Tensor:
        first = x + 1
        second = first + 1
        del first
        return second + 1

    def views() -> torch.Tensor:
        return x.view(10, 25).T[:3]

    def in_place() -> torch.Tensor:
        return torch.zeros(250).add_(1)[:10]

    assert peak_bytes(one_after_the_other) == 2000
    assert peak_bytes(views) == 0
    assert peak_bytes(in_place) == 1000
    with torch.inference_mode():
        assert peak_bytes(one_after_the_other) == 2000


def test_a_gradient_keeps_what_the_backward_pass_needs():
    weight = torch.ones(250, requires_grad=True)

    def step() -> None:
        (weight.exp().exp() * 2).sum().backward()
        weight.grad = None

    with torch.no_grad():
        without = peak_bytes(lambda: (weight.exp().exp() * 2).sum())
    assert peak_bytes(step) > without


@pytest.mark.parametrize("form", ["default", "unmerged", "published"])
def test_memory_falls_with_the_budget_and_stays_below_the_dense_network(form):
    dense = tiny(Nest(widths=(64,), hidden=(256,), heads=(4,)), grid=(8, 8), nominal=32)
    images = torch.randn(8, 3, 32, 32)
    forms = {
        "default": shape(64, 256, 4),
        "unmerged": shape(64, 256, 4, merge=0.0),
        "published": published(64, 256, 4),
    }
    model = nest(dense, images, nest=forms[form], compensated=False)
    with torch.inference_mode():
        taken = [peak_bytes(lambda b=b: model(images, budget=b).logits) for b in (1.0, 0.8, 0.65, 0.5, 0.4)]
        whole = peak_bytes(lambda: dense(images).logits)
    assert taken == sorted(taken, reverse=True)
    assert taken[0] <= 1.02 * whole
    assert taken[-1] < 0.9 * whole
