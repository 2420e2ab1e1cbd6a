"""Laws of allocations: paths given by hand, and paths found by measurement."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NESTS, small

from nestor.models.saved import load_model, save_model
from nestor.models.vit import ViT
from nestor.routing.allocation import EVEN, Allocation
from nestor.routing.capacity import solve
from nestor.surgery.allocate import allocate, least_area, losses, mixtures

SHARED = Allocation(path=((1.0, 0.0, 0.0), (0.25, 0.5, 0.25), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0)))


def images(count=3, side=16):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@st.composite
def paths(draw: st.DrawFn, experts: int) -> Allocation:
    """Random promotions, one after the other, until all tokens are at the last expert."""
    steps = draw(st.integers(1, 6))
    parts = [steps] + [0] * (experts - 1)
    path = [tuple(part / steps for part in parts)]
    while parts[-1] < steps:
        low = draw(st.sampled_from([j for j in range(experts - 1) if parts[j]]))
        high = draw(st.integers(low + 1, experts - 1))
        parts[low], parts[high] = parts[low] - 1, parts[high] + 1
        path.append(tuple(part / steps for part in parts))
    return Allocation(path=tuple(path))


costs_of = st.lists(st.floats(0.01, 10), min_size=4, max_size=4).map(lambda steps: tuple(itertools.accumulate(steps)))


@given(paths(4), costs_of, st.floats(0, 1))
def test_a_path_meets_every_budget_within_its_costs(allocation, costs, place):
    budget = costs[0] + place * (costs[-1] - costs[0])
    fractions = allocation.capacity(budget, costs).fractions
    assert math.fsum(f * c for f, c in zip(fractions, costs, strict=True)) == pytest.approx(budget, rel=1e-6)


@given(paths(4), costs_of, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_only_promotes(allocation, costs, one, other):
    low, high = (
        allocation.capacity(costs[0] + place * (costs[-1] - costs[0]), costs).fractions
        for place in sorted((one, other))
    )
    assert all(math.fsum(high[j:]) >= math.fsum(low[j:]) - 1e-9 for j in range(4))


@given(paths(2), st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0, 1))
def test_with_two_experts_every_rule_is_the_same(allocation, low, step, place):
    costs, budget = (low, low + step), low + place * step
    assert allocation.capacity(budget, costs).fractions == pytest.approx(solve(budget, costs).fractions, abs=1e-6)


def test_shares_change_in_proportion_between_two_stages():
    # The stages cost 1, 2.25, 3 and 4 on average.
    costs = (1.0, 2.0, 4.0)
    assert SHARED.capacity(1.625, costs).fractions == pytest.approx((0.625, 0.25, 0.125))
    assert SHARED.capacity(3.0, costs).fractions == pytest.approx((0, 0.5, 0.5))
    assert SHARED.capacity(3.5, costs).fractions == pytest.approx((0, 0.25, 0.75))
    assert SHARED.capacity(1.0, costs).fractions == (1, 0, 0)
    assert SHARED.capacity(4.0, costs).fractions == (0, 0, 1)
    assert EVEN.capacity(2.5, costs) == solve(2.5, costs)


@pytest.mark.parametrize("name", ["published", "default", "heads", "skip", "own skip"])
@settings(deadline=None, max_examples=15)
@given(data=st.data(), patches=st.sampled_from([7, 16, 64, 400]), place=st.floats(0, 1))
def test_spent_macs_never_exceed_the_budget_and_miss_it_by_less_than_a_token(name, data, patches, place):
    allocation = data.draw(paths(NESTS[name].experts))
    model = small(name, allocation=allocation)
    full, low = model.full_macs(patches), model.least_budget(patches)
    token = (full - model.full_macs(patches - 1)) / full
    budget = low + (1 - low) * place
    counts = model.plan(patches, budget)
    assert sum(counts) == patches
    # They are whole numbers: a budget between two of them counts as the nearer one.
    assert (budget - token) * full < model.macs(counts) <= budget * full + 0.5


def test_a_network_runs_the_stages_of_its_path():
    model = small("own", allocation=SHARED)
    full = model.full_macs(16)
    for stage in SHARED.path:
        counts = tuple(round(16 * share) for share in stage)
        assert model.plan(16, model.macs(counts) / full) == counts
    # Left to itself, as few at the middle expert as can be: none while the widest take the rest.
    skipping = Allocation(path=((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    found, even = (small("own", allocation=rule).plan(16, 0.6) for rule in (skipping, EVEN))
    assert found[1] <= 1 < even[1]


@pytest.mark.parametrize(("experts", "steps"), [(2, 5), (3, 4), (4, 3)])
def test_mixtures_are_all_there_and_follow_those_that_lead_to_them(experts, steps):
    found = list(mixtures(experts, steps))
    assert set(found) == {p for p in itertools.product(range(steps + 1), repeat=experts) if sum(p) == steps}
    assert len(found) == math.comb(steps + experts - 1, experts - 1)
    tails = [[sum(parts[j:]) for j in range(experts)] for parts in found]
    for i, j in itertools.combinations(range(len(found)), 2):
        assert not all(a >= b for a, b in zip(tails[i], tails[j], strict=True))


def every_way(at, end):
    """All ways by promotions of one part."""
    if at == end:
        yield [at]
        return
    for low, high in itertools.combinations(range(len(at)), 2):
        if at[low]:
            moved = list(at)
            moved[low], moved[high] = moved[low] - 1, moved[high] + 1
            for rest in every_way(tuple(moved), end):
                yield [at, *rest]


def area(way, points):
    return sum(
        max(0, points[b][0] - points[a][0]) * (points[a][1] + points[b][1]) / 2 for a, b in itertools.pairwise(way)
    )


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=10, max_size=10))
def test_no_way_has_less_area_than_the_one_found(values):
    points = dict(zip(mixtures(3, 3), values, strict=True))
    found = least_area(points)
    assert (found[0], found[-1]) == ((3, 0, 0), (0, 0, 3))
    assert area(found, points) == pytest.approx(min(area(way, points) for way in every_way((3, 0, 0), (0, 0, 3))))
    Allocation(path=tuple(tuple(part / 3 for part in parts) for parts in found))


def at_expert(*experts):
    """A loss: the share of the patches that take one of these experts."""

    def loss(found, full):
        index = found.routings[0].index.squeeze(-1)
        return torch.stack([index == j for j in experts]).any(0).double().mean(1)

    return loss


def test_an_expert_as_good_as_the_widest_is_filled_first():
    model = small("own")
    assert allocate(model, images(), steps=2, loss=at_expert(0)).settings.allocation.path == (
        (1.0, 0.0, 0.0),
        (0.5, 0.5, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.5, 0.5),
        (0.0, 0.0, 1.0),
    )


def test_an_expert_as_bad_as_the_narrowest_is_left_out():
    new = allocate(small("own"), images(), steps=4, loss=at_expert(0, 1))
    assert {stage[1] for stage in new.settings.allocation.path} == {0.0}
    assert new.plan(16, 0.6)[1] <= 1


def test_costs_may_be_others_than_macs():
    """Where the middle expert takes longer than the widest, it is left out although it loses nothing."""
    found = allocate(
        small("own"), images(), steps=4, loss=at_expert(0), costs=lambda plans: [b * 3.0 + c for _, b, c in plans]
    )
    assert {stage[1] for stage in found.settings.allocation.path} == {0.0}


def test_what_loses_no_less_on_other_pictures_is_not_taken():
    """A path that is better on the first half only, and one that is the same."""
    model, half = small("own"), []

    def fickle(found, full):
        half.append(len(found.tokens))
        return at_expert(0)(found, full) if half[-1] == 3 else at_expert(1, 2)(found, full)

    assert allocate(model, images(5), steps=2, loss=fickle).settings.allocation == EVEN
    assert {2, 3} == set(half)
    kept = small("own", allocation=SHARED)
    assert allocate(kept, images(5), steps=2, loss=fickle).settings.allocation == SHARED
    two = small("depth")
    assert allocate(two, images(), steps=4, loss=at_expert(0)).settings.allocation == EVEN


def test_losses_are_those_of_the_tokens_however_they_are_batched():
    model, x = small("own"), images(5)
    plans = [(16, 0, 0), (4, 4, 8), (0, 0, 16)]

    def loss(found, full):
        return (found.tokens - full.tokens).square().mean((1, 2))

    with torch.no_grad():
        full = model(x).tokens
        wanted = [(model.run(x, plan).tokens - full).square().mean().item() for plan in plans]
    for batch in (2, 5):
        assert losses(model, x, plans, loss, batch) == pytest.approx(wanted, rel=1e-4)
    assert wanted[-1] == 0


def test_an_allocated_network_is_a_copy_and_is_kept(tmp_path):
    model = small("own").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    new = allocate(model, images(), steps=3, loss=at_expert(0))
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.settings.allocation == EVEN
    assert not new.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in new.state_dict().items())
    new.embed.weight.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    save_model(new, tmp_path)
    again = load_model(tmp_path)
    assert again.settings == new.settings
    assert again.settings.allocation.path
    assert again.plan(16, 0.5) == new.plan(16, 0.5)


def test_bad_paths_are_refused_with_the_repair():
    with pytest.raises(ValueError, match=r"two or more; got \[1\] of them"):
        Allocation(path=((1.0,),))
    with pytest.raises(ValueError, match=r"same experts at each stage, two or more; got \[2, 3\]"):
        Allocation(path=((1.0, 0.0), (0.0, 0.0, 1.0)))
    with pytest.raises(ValueError, match=r"sum to 1; got 0.9"):
        Allocation(path=((1.0, 0.0), (0.5, 0.4), (0.0, 1.0)))
    with pytest.raises(ValueError, match=r"from all tokens at the first .* got \(0.5, 0.5\) to \(0.0, 1.0\)"):
        Allocation(path=((0.5, 0.5), (0.0, 1.0)))
    with pytest.raises(ValueError, match=r"must promote .* got \(0.2, 0.8, 0.0\), then \(0.5, 0.0, 0.5\)"):
        Allocation(path=((1.0, 0.0, 0.0), (0.2, 0.8, 0.0), (0.5, 0.0, 0.5), (0.0, 0.0, 1.0)))
    with pytest.raises(ValueError, match=r"a path for 3 experts; the network has 4. Measure it again"):
        ViT(replace(small("default").settings, allocation=SHARED))
    with pytest.raises(ValueError, match=r"budget must lie in \[1, 4\] for these costs; got 5"):
        SHARED.capacity(5, (1, 2, 4))
    with pytest.raises(ValueError, match=r"this network has one. Make it elastic: nestor nest"):
        allocate(small("dense"), images())
    with pytest.raises(ValueError, match=r"steps must lie in \[1, 16\], .* got 17"):
        allocate(small("own"), images(), steps=17)
    with pytest.raises(ValueError, match=r"on some pictures and judged on others; got 1. Take 64"):
        allocate(small("own"), images(1))
