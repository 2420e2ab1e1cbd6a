"""Video networks with random weights, with other spatial encoders, and where their patches go."""

from typing import Any

import pytest
import torch

from nestor.measure.routed import experts, miscounted, swayed
from nestor.models.scratch import scratch
from nestor.models.scratch_video import cheaper_video, scratch_video, with_space
from nestor.models.uniform import randomly_routed
from nestor.models.video import VideoViT
from nestor.surgery.nest import nest, published
from nestor.training import Fit, Fixed
from nestor.training.compute import step_macs
from nestor.training.within import within

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {"side": 16, "patch": 4, "width": 32, "depth": 2, "heads": 4}
TIME: dict[str, Any] = {"frames": 6, "tubelet": 2, "temporal": 2}


def dense(**changes: Any) -> VideoViT:
    return scratch_video(("a", "b", "c"), **(SIZES | TIME | changes)).eval()


def clips(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def nested(model: VideoViT) -> VideoViT:
    space = nest(model.space, model.pictures(clips()), nest=published(32, 128, 4), compensated=False)
    return with_space(model, space)


def test_equal_seeds_are_equal_networks_and_the_generator_stays():
    before = torch.random.get_rng_state()
    first, again, other = (dense(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())
    assert not torch.equal(first["space.embed.weight"], other["space.embed.weight"])
    assert dense()(clips()).logits.shape == (4, 3)


def test_a_nested_encoder_changes_nothing_at_full_budget():
    model = dense()
    elastic = nested(model)
    assert elastic.settings.nest.widths == (4, 8, 16, 32)
    assert not elastic.training
    with torch.no_grad():
        full, low = (elastic(clips(), budget=b) for b in (1.0, 0.5))
        wanted = model(clips())
    torch.testing.assert_close(full.tokens, wanted.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(full.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    assert (low.tokens - wanted.tokens).norm() > 1e-3 * wanted.tokens.norm()
    elastic.head.linear.weight.data.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    assert model.head is not None
    assert model.head.linear.weight.any()


def test_patches_are_counted_and_routed_index_by_index():
    model = nested(dense())
    for budget in (0.5, 0.8, 1.0):
        found = experts(model, clips(), budget)
        assert found.shape == (4, 3, 16)
        plan = model.plan(16, budget)
        for expert, count in enumerate(plan):
            assert ((found == expert).sum(2) == count).all()
        assert miscounted(model, clips(), budget) == 0
        assert swayed(model, clips(), budget) == 0


def test_counts_and_influence_are_found_out_where_they_are_wrong(monkeypatch):
    model = with_space(dense(), randomly_routed(nested(dense()).space))
    # Another draw for each call: the first index changes, whatever the others are.
    assert swayed(model, clips(), 0.6) > 0
    assert miscounted(model, clips(), 0.6) == 0
    plan = model.plan(16, 0.6)
    run = model.run
    monkeypatch.setattr(model, "plan", lambda *_: (plan[0] + 1, plan[1] - 1, *plan[2:]))
    monkeypatch.setattr(model, "run", lambda x, _: run(x, plan))
    assert miscounted(model, clips(), 0.6) == 2 * 4 * 3


@pytest.mark.parametrize("budget", [1.0, 0.65, 0.434, 0.2])
def test_a_cheaper_network_costs_what_it_may(budget: float):
    model = dense(width=64)
    narrow = cheaper_video(model, budget, seed=1)
    width, hidden = narrow.settings.nest.widths[0], narrow.settings.nest.hidden[0]
    # One hidden unit more in each block, spatial and temporal.
    unit = 2 * width * (2 * 3 * 17 + 2 * 4)
    most = budget * model.full_macs(16)
    assert most - unit < narrow.full_macs(16) <= most
    assert 4 * width <= hidden < 8 * width
    assert narrow.settings.indices == model.settings.indices
    assert narrow(clips(1)).logits is not None


def test_training_within_an_allowance_takes_nearly_all_of_it():
    model = nested(dense())
    settings = Fit(budgets=Fixed(budget=0.5), sandwich=False)
    step = step_macs(model, 16, settings, 0)
    for allowed in (10 * step, 10.9 * step):
        found, share = within(model, 16, settings, allowed)
        assert found.steps == 10
        assert share == pytest.approx(10 * step / allowed)


def test_networks_that_cannot_be():
    model = dense()
    with pytest.raises(ValueError, match="follows from one with 1 expert; got 4"):
        cheaper_video(nested(model), 0.5)
    with pytest.raises(ValueError, match=r"of width 4, costs more than 0\.001"):
        cheaper_video(model, 0.001)
    with pytest.raises(ValueError, match=r"must be 32 wide for 6 channels, 3 times the tubelet; got 64 and 6"):
        with_space(model, dense(width=64).space)
    with pytest.raises(ValueError, match="got 32 and 3"):
        with_space(model, scratch((), **SIZES, prefix=1))
    with pytest.raises(ValueError, match=r"a single expert\. Make it elastic"):
        experts(model, clips(), 1.0)
