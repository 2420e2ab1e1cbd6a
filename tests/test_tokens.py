from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vit import DENSE, NARROWED, SKIPPING, tiny

from nestor.models.merged import Merged, constant, falling
from nestor.models.uniform import Uniform, randomly_routed, routed_by
from nestor.ops.tokens import keep, match, match_macs, mergeable


def naive(metric, r, protected, tokens, size):
    """One item at a time, by loops: lists of (members, token, size) in the published order."""
    T = len(metric)
    evens = [i for i in range(protected, T) if i % 2 == 0]
    odds = [i for i in range(protected, T) if i % 2 == 1]
    cosine = torch.nn.functional.cosine_similarity
    best = {i: max(odds, key=lambda j, i=i: float(cosine(metric[i], metric[j], dim=0))) for i in evens} if r else {}
    ranked = sorted(best, key=lambda i: -float(cosine(metric[i], metric[best[i]], dim=0)))
    gone = ranked[:r]
    groups = [[i] for i in range(protected)] + [[i] for i in evens if i not in gone]
    groups += [[j, *(i for i in gone if best[i] == j)] for j in odds]
    if r == 0:
        groups = [[i] for i in range(T)]
    merged = [(tokens[g] * size[g]).sum(0) / size[g].sum(0) for g in groups]
    return torch.stack(merged), torch.stack([size[g].sum(0) for g in groups]), groups


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 5), st.integers(0, 17), st.integers(0, 9), st.integers(0, 1000))
def test_merging_is_that_of_a_naive_loop(protected, count, r, seed):
    T, r = protected + count, min(r, mergeable(count))
    if T == 0:
        return
    draw = torch.Generator().manual_seed(seed)
    metric, tokens = torch.randn(2, T, 5, generator=draw), torch.randn(2, T, 3, generator=draw)
    size = torch.randint(1, 5, (2, T, 1), generator=draw).float()
    found = match(metric, r, protected)
    merged, sizes = found.merge(tokens, size)
    back = found.unmerge(merged)
    for item in range(2):
        expected, weights, groups = naive(metric[item], r, protected, tokens[item], size[item])
        torch.testing.assert_close(merged[item], expected)
        torch.testing.assert_close(sizes[item], weights)
        for place, group in enumerate(groups):
            for member in group:
                assert torch.equal(back[item, member], merged[item, place])


def test_merging_by_hand():
    # Positions 1..4 are patches; 2 equals 3 in direction and 4 is nearest to 1.
    metric = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [0.0, 1.0], [1.0, 0.5]]])
    tokens = torch.tensor([[[10.0], [1.0], [2.0], [4.0], [8.0]]])
    size = torch.tensor([[[1.0], [1.0], [1.0], [3.0], [1.0]]])
    one, sizes = match(metric, 1, 1).merge(tokens, size)
    assert one.flatten().tolist() == [10, 8, 1, 3.5]
    assert sizes.flatten().tolist() == [1, 1, 1, 4]
    two, sizes = match(metric, 2, 1).merge(tokens, size)
    assert two.flatten().tolist() == [10, 4.5, 3.5]
    assert sizes.flatten().tolist() == [1, 2, 4]


def test_two_merges_in_turn_are_one():
    tokens, size = torch.randn(3, 21, 4), torch.ones(3, 21, 1)
    first = match(tokens, 6, 1)
    middle, sizes = first.merge(tokens, size)
    second = match(middle, 5, 1)
    last, sizes = second.merge(middle, sizes)
    together = first.then(second)
    torch.testing.assert_close(together.merge(tokens, size)[0], last)
    assert torch.equal(together.unmerge(last), first.unmerge(second.unmerge(last)))
    # Sizes are whole patches, so the mean over the grid is the weighted mean of what is left.
    assert sizes.sum(1).flatten().tolist() == [21, 21, 21]
    torch.testing.assert_close((last * sizes).sum(1) / 21, tokens.mean(1))


def test_nothing_merged_is_nothing_changed():
    tokens = torch.randn(2, 7, 4)
    for merge in (keep(tokens), match(tokens, 0, 1)):
        assert torch.equal(merge.merge(tokens, torch.ones(2, 7, 1))[0], tokens)
        assert torch.equal(merge.unmerge(tokens), tokens)


def test_gradients_pass_the_merge_and_not_the_match():
    metric, tokens = torch.randn(1, 6, 4, requires_grad=True), torch.randn(1, 6, 4, requires_grad=True)
    merged, _ = match(metric, 2, 1).merge(tokens, torch.ones(1, 6, 1))
    merged.sum().backward()
    assert metric.grad is None
    assert tokens.grad is not None
    assert (tokens.grad > 0).all()


@pytest.mark.parametrize("r", [-1, 4])
def test_more_than_half_cannot_vanish(r):
    with pytest.raises(ValueError, match=rf"r must lie in \[0, 3\] for 7 tokens; got {r}"):
        match(torch.randn(1, 8, 4), r, 1)
    assert match_macs(7, 10) == 3 * 4 * 10


@pytest.mark.parametrize("head", [None, "class", "class_mean", "mean_then_norm", "attention"])
def test_without_merging_the_network_is_the_dense_one(head):
    dense = tiny(prefix=2, **({} if head is None else {"classes": 3, "head": head}))
    images = torch.randn(2, 3, 16, 16)
    found, expected = Merged(dense)(images, budget=1.0), dense(images)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-5, rtol=0)
    if head is not None:
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)


def test_equal_patches_merge_without_a_trace():
    # Patches that equal each other at first stay equal, so that counting them as often as they were changes nothing.
    dense = tiny(classes=3, head="class_mean")
    torch.nn.init.zeros_(dense.embed.position)
    images = torch.randn(2, 3, 1, 1).expand(2, 3, 16, 16)
    model = Merged(dense)
    plan = model.schedule(16, 8)
    assert plan == (16, 8, 4)
    found, expected = model.run(images, plan), dense(images)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.floats(0, 1))
def test_merging_keeps_every_budget_it_can_reach(patches, share):
    model = Merged(tiny(depth=4))
    low = model.least_budget(patches)
    budget = low + share * (1 - low)
    plan = model.plan(patches, budget)
    assert model.macs(plan) / model.full_macs(patches) <= budget
    gone = [a - b for a, b in pairwise(plan)]
    if sum(gone) and all(g < mergeable(n) for g, n in zip(gone, plan, strict=False)):
        # Merging one patch less, where one more than elsewhere is merged, would no longer fit.
        gone[max(i for i, g in enumerate(gone) if g == max(gone))] -= 1
        assert model.macs(model.schedule(patches, gone)) / model.full_macs(patches) > budget


@given(st.integers(0, 500), st.integers(1, 24))
def test_every_spread_merges_what_it_is_told(gone, depth):
    for spread in (constant, falling):
        each = spread(gone, depth)
        assert (len(each), sum(each), min(each) >= 0) == (depth, gone, True)
    assert max(constant(gone, depth)) - min(constant(gone, depth)) <= 1


def test_spreads_by_hand():
    assert constant(14, 4) == [4, 4, 3, 3]
    assert falling(32, 4) == [14, 10, 6, 2]
    model = Merged(tiny(depth=4), spread=falling)
    for budget in (0.9, 0.6, model.least_budget(64)):
        assert model.macs(model.plan(64, budget)) / model.full_macs(64) <= budget


def test_the_budget_may_be_set_or_given():
    model = Merged(tiny(classes=2))
    images = torch.randn(1, 3, 24, 24)
    model.budget = 0.8
    assert torch.equal(model(images).logits, model(images, budget=0.8).logits)
    assert not torch.equal(model(images).logits, model(images, budget=1.0).logits)


def test_half_precision_runs():
    model = Merged(tiny(classes=2)).to(torch.bfloat16)
    out = model(torch.randn(1, 3, 24, 24, dtype=torch.bfloat16), budget=0.8)
    assert out.logits.dtype == out.tokens.dtype == torch.bfloat16
    assert out.tokens.isfinite().all()


def test_merging_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="with 1 expert; got 4"):
        Merged(tiny(NARROWED))
    model = Merged(tiny())
    for budget in (0.01, 1.5):
        with pytest.raises(ValueError, match=rf"budget must lie in \[0\.\d+, 1\] for merging 36 patches.*got {budget}"):
            model.plan(36, budget)
    with pytest.raises(ValueError, match="one for each of 2 blocks"):
        model.schedule(36, (1, 2, 3))


@pytest.mark.parametrize("nest", [NARROWED, SKIPPING])
def test_one_width_is_a_plan_with_one_expert(nest):
    nested = tiny(nest, classes=2)
    model = Uniform(nested)
    for expert in range(nest.experts):
        counts = tuple(16 * (j == expert) for j in range(nest.experts))
        budget = nested.macs(counts) / nested.full_macs(16)
        assert model.plan(16, budget) == counts
        assert model.plan(16, min(1.0, budget * 1.001)) == counts
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images).logits, nested(images).logits)
    low = nested.least_budget(16)
    torch.testing.assert_close(model(images, low).tokens, nested(images, low).tokens)
    with pytest.raises(ValueError, match=r"budget must lie in .* got 0\.001"):
        model.plan(16, 0.001)


def test_a_dense_network_has_one_width():
    dense = tiny(DENSE, classes=2)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(Uniform(dense)(images).logits, dense(images).logits)


def test_a_router_keeps_what_it_learnt_where_its_scores_come_first():
    model, images = tiny(NARROWED, classes=2), torch.randn(2, 3, 16, 16)
    more = routed_by(model, (*model.settings.scores, "perturbed"))
    assert torch.equal(more(images, 0.6).logits, model(images, 0.6).logits)
    draws = [more.train()(images, 0.6).routings[0].index for _ in range(8)]
    assert any(not torch.equal(draws[0], each) for each in draws)
    assert {p.dtype for p in routed_by(tiny(NARROWED).bfloat16(), ("linear",)).parameters()} == {torch.bfloat16}
    fresh = routed_by(model, ("linear",))
    assert not any(tensor.any() for name, tensor in fresh.state_dict().items() if name.startswith("router."))


def test_random_routing_is_an_edit():
    model = tiny(NARROWED, classes=2)
    model.budget = 0.7
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    copy = randomly_routed(model)
    assert torch.equal(state, torch.random.get_rng_state())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(copy(images, 1.0).tokens, model(images, 1.0).tokens, rtol=0.1, atol=0.5)
    first, second = copy(images).routings[0], copy(images).routings[0]
    assert torch.equal(first.counts, second.counts)
    assert not torch.equal(first.index, second.index)
    assert copy.budget == 0.7
    assert copy.settings.scores == ("uniform",)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
