"""Laws of merging on the way: fewer tokens, the same network."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NESTS, small

from nestor.layers.nested import Nest
from nestor.measure.cost import cost
from nestor.models.saved import load_model, save_model
from nestor.models.vit import ViT, ViTSettings
from nestor.ops.attention import attend, by_matmul
from nestor.ops.bands import Band
from nestor.ops.thin import sizes, spread, stages, thin

MERGING = ["published", "default", "heads", "own"]


def merging(name: str, merge: float = 0.7, **changes) -> ViT:
    """The small network with the same weights, merging."""
    model = small(name, **changes)
    new = ViT(replace(model.settings, nest=replace(model.settings.nest, merge=merge)))
    new.load_state_dict(model.state_dict())
    return new


def deep(merge: float = 0.7, depth: int = 12) -> ViT:
    nest = Nest(widths=(4, 8, 16), hidden=(8, 16, 32), heads=(2, 2, 2), merge=merge)
    settings = ViTSettings(nest=nest, depth=depth, patch=2, grid=(8, 8), nominal=16, scores=("trailing",))
    return ViT(settings).eval()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.floats(0, 0.99), st.integers(1, 24))
def test_stages_start_with_all_and_lose_a_share_of_the_narrow(counts, share, depth):
    found = stages(counts, share, depth)
    assert len(found) == depth
    assert found[0] == tuple(counts)
    for before, after in pairwise(found):
        assert all(b - b // 2 <= a <= b for b, a in zip(before, after, strict=True))
    lost = sum(counts) - sum(found[-1])
    assert lost <= share * sum(counts[:-1]) + 1e-6
    if sum(counts[:-1]) == 0 or share == 0:
        assert set(found) == {tuple(counts)}


def test_a_third_of_the_merging_follows_each_quarter():
    found = stages((60, 40), 0.5, 12)
    # 30% of each in the end.
    assert found == ((60, 40),) * 3 + ((54, 36),) * 3 + ((48, 32),) * 3 + ((42, 28),) * 3


@pytest.mark.parametrize("patches", [16, 64, 256])
def test_spent_macs_never_exceed_the_budget_and_miss_it_by_less_than_two_tokens(patches):
    model = deep()
    full, low = model.full_macs(patches), model.least_budget(patches)
    token = (full - model.full_macs(patches - 1)) / full
    assert low < deep(0.0).least_budget(patches)
    for step in range(21):
        budget = low + (1 - low) * step / 20
        spent = model.macs(model.plan(patches, budget)) / full
        assert budget - 2 * token < spent <= budget + 1e-12


def test_cost_lists_the_merging_and_adds_up():
    model = deep()
    found = cost(model, 16, 0.4)
    assert found.parts["merging"] > 0
    assert sum(found.parts.values()) == found.macs == model.macs(model.plan(64, 0.4))
    assert cost(model, 16).parts["merging"] == 0


def band(rows, protected=0, gate=None):
    tail = torch.arange(rows.shape[1], dtype=torch.float32).view(1, -1, 1).expand(len(rows), -1, -1)
    return Band(0, rows, tail, gate)


def test_the_most_alike_become_their_mean():
    rows = torch.tensor([[[1.0, 0.0], [3.0, 0.1], [0.0, 2.0], [-1.0, 0.0]]])
    found = thin(band(rows, gate=torch.tensor([[[0.2], [0.4], [0.6], [0.8]]])), 3)
    assert found.size is not None
    assert found.gate is not None
    # Token 0 joins token 1; what stayed of the even ones stands in front.
    torch.testing.assert_close(found.rows, torch.tensor([[[0.0, 2.0], [2.0, 0.05], [-1.0, 0.0]]]))
    torch.testing.assert_close(found.size.flatten(), torch.tensor([1.0, 2.0, 1.0]))
    torch.testing.assert_close(found.tail.flatten(), torch.tensor([2.0, 0.5, 3.0]))
    torch.testing.assert_close(found.gate.flatten(), torch.tensor([0.6, 0.3, 0.8]))
    back = spread(found)
    torch.testing.assert_close(back.rows[0, :2], torch.tensor([[2.0, 0.05], [2.0, 0.05]]))
    torch.testing.assert_close(back.rows[0, 2:], rows[0, 2:])
    assert back.size is None


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(0, 3), st.integers(0, 100))
def test_merging_twice_weighs_every_token_once(free, protected, seed):
    rows = torch.randn(2, free + protected, 5, generator=torch.Generator().manual_seed(seed))
    once = thin(band(rows), free - free // 2 + protected, protected)
    left = once.rows.shape[1] - protected
    twice = thin(once, left - left // 2 + protected, protected)
    for found in (once, twice):
        total = sizes([found])
        assert total is not None
        torch.testing.assert_close(total.sum(1).flatten(), torch.full((2,), float(free + protected)))
        torch.testing.assert_close((found.rows * total).sum(1), rows.sum(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.rows[:, :protected], rows[:, :protected])
        assert spread(found).rows.shape == rows.shape


@pytest.mark.parametrize("way", [attend, by_matmul])
def test_a_key_of_size_three_counts_like_three_keys(way):
    query, key, value = torch.randn(3, 2, 2, 5, 4)
    size = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0]).view(1, 5, 1).expand(2, -1, -1)
    repeated = [part.repeat_interleave(torch.tensor([1, 3, 1, 2, 1]), 2) for part in (key, value)]
    torch.testing.assert_close(way(query, key, value, size), way(query, *repeated), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MERGING)
def test_merging_equal_tokens_changes_nothing(name):
    model, plain = merging(name), small(name)
    for network in (model, plain):
        torch.nn.init.zeros_(network.embed.position)
    # Neighbours in a row are equal, and even counts keep them together.
    pairs = torch.randn(2, 3, 16, 8).unflatten(3, (2, 4))
    x = pairs.repeat_interleave(2, 3).flatten(3)
    counts = {2: (10, 6), 3: (8, 4, 4), 4: (6, 4, 2, 4)}[model.settings.nest.experts]
    assert model.macs(counts) < plain.macs(counts)
    ours, theirs = model.run(x, counts), plain.run(x, counts)
    torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MERGING)
def test_full_budget_merges_nothing(name):
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(merging(name)(x).tokens, small(name)(x).tokens)


@pytest.mark.parametrize("name", MERGING)
def test_every_parameter_still_learns(name):
    model = merging(name)
    model(torch.randn(2, 3, 16, 16), budget=0.6).logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_pictures_do_not_touch_each_other_and_recomputing_changes_nothing():
    model = deep()
    x = torch.randn(3, 3, 16, 16)
    together = model(x, budget=0.4).tokens
    alone = torch.cat([model(one.unsqueeze(0), budget=0.4).tokens for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(model)
    again.checkpointing = True
    torch.testing.assert_close(again(x, budget=0.4).tokens, together)


def test_half_precision_stays_near():
    model = deep(depth=4)
    x = torch.randn(2, 3, 16, 16)
    counts = model.plan(64, 0.5)
    single, half = model.run(x, counts).tokens, model.bfloat16().run(x.bfloat16(), counts).tokens
    assert half.isfinite().all()
    assert torch.cosine_similarity(single.flatten(), half.float().flatten(), 0) > 0.9


def test_compiled_without_a_break():
    torch._dynamo.reset()
    model = merging("default").eval()
    x = torch.randn(2, 3, 16, 16)
    plain = model(x, budget=0.5).tokens
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, budget=0.5).tokens, plain, rtol=1e-5, atol=1e-5)


def test_saved_and_loaded(tmp_path):
    model = deep()
    save_model(model, tmp_path)
    found = load_model(tmp_path)
    x = torch.randn(1, 3, 16, 16)
    assert found.settings == model.settings
    assert torch.equal(found(x, budget=0.4).tokens, model(x, budget=0.4).tokens)


@pytest.mark.parametrize("merge", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(merge):
    with pytest.raises(ValueError, match=r"merge must lie in \[0, 1\).*got (-0\.1|1\.0|nan)"):
        replace(NESTS["default"], merge=merge)


def test_a_skip_cannot_merge():
    with pytest.raises(ValueError, match=r"a skip has none; got widths \(0, 12, 24\)\. Set merge=0"):
        replace(NESTS["skip"], merge=0.5)


def test_more_than_half_cannot_merge_at_once():
    with pytest.raises(ValueError, match=r"r must lie in \[0, 2\]"):
        thin(band(torch.randn(1, 4, 3)), 1)
