"""Capacity and choice: the published values, values small enough to check by hand, and laws."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nestor.routing.adjust import Softmax
from nestor.routing.capacity import solve, whole
from nestor.routing.choose import expert_preferred, top_k
from nestor.routing.router import ComposedRouter, ExpertPreferredRouter
from nestor.routing.score import ExpectedLoss, Linear, Sum, TrailingEnergy, Uniform
from nestor.types import NOBODY, Capacity, Signal

top_1 = partial(top_k, k=1)
DOUBLING = (1 / 8, 1 / 4, 1 / 2, 1)


@pytest.mark.parametrize(
    ("effective", "expected"),
    [
        (0.2, (0.601, 0.310, 0.083, 0.006)),
        (0.3, (0.414, 0.321, 0.194, 0.071)),
        (0.5, (0.227, 0.235, 0.251, 0.288)),
        (0.8, (0.059, 0.084, 0.170, 0.687)),
        (15 / 32, (0.25, 0.25, 0.25, 0.25)),
    ],
)
def test_capacity_has_the_published_values(effective, expected):
    assert solve(effective, DOUBLING).fractions == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("effective", [0.15, 0.2, 0.35, 0.5, 0.7, 0.9])
def test_closed_form_equals_the_published_optimiser(effective):
    beta, delta = 10.0, 2.0
    costs, powers = np.array(DOUBLING), delta ** np.arange(4)

    def loss(c):
        return -(c @ powers) + beta * np.sum(c * np.log(np.maximum(c, 1e-12)))

    constraints = [
        {"type": "eq", "fun": lambda c: c.sum() - 1},
        {"type": "eq", "fun": lambda c: c @ costs - effective},
    ]
    start = np.full(4, 0.25)
    found = minimize(
        loss, start, bounds=[(1e-9, 1)] * 4, constraints=constraints, method="SLSQP", options={"ftol": 1e-12}
    )
    assert found.success
    assert solve(effective, DOUBLING).fractions == pytest.approx(found.x, abs=1e-4)


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=6).map(lambda steps: tuple(np.cumsum(steps))),
    st.floats(0, 1),
)
def test_capacity_meets_every_budget_within_its_costs(costs, place):
    budget = costs[0] + place * (costs[-1] - costs[0])
    fractions = solve(budget, costs).fractions
    assert math.fsum(f * c for f, c in zip(fractions, costs, strict=True)) == pytest.approx(budget, rel=1e-6)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5).map(lambda steps: tuple(int(c) for c in np.cumsum(steps))),
    st.integers(1, 60),
    st.floats(0, 1),
)
def test_whole_tokens_never_exceed_and_leave_less_than_one_promotion(costs, tokens, place):
    limit = tokens * (costs[0] + place * (costs[-1] - costs[0]))

    def cost(counts):
        return sum(n * c for n, c in zip(counts, costs, strict=True))

    counts = whole(solve(limit / tokens, costs), tokens, cost, limit * (1 + 1e-12))
    assert sum(counts) == tokens
    assert min(counts) >= 0
    assert cost(counts) <= limit * (1 + 1e-9)
    left = limit - cost(counts)
    assert counts[-1] == tokens or left < max(b - a for a, b in pairwise(costs))


def test_counts_are_the_published_floors():
    capacity = Capacity(fractions=(0.25, 0.25, 0.25, 0.25))
    assert capacity.counts(8) == (2, 2, 2, 2)
    assert capacity.counts(11) == (5, 2, 2, 2)
    assert Capacity(fractions=(0.0, 0.7, 0.3)).counts(10) == (0, 7, 3)


def test_expert_preferred_by_hand():
    # Four tokens, three experts. Expert 2 takes the token it likes best (2), expert 1 the best two of the rest (0, 1).
    scores = torch.tensor([[[0.1, 0.6, 0.3], [0.3, 0.5, 0.2], [0.0, 0.1, 0.9], [0.6, 0.3, 0.1]]])
    decision = expert_preferred(scores, (1, 2, 1))
    assert decision.index.flatten().tolist() == [1, 1, 2, 0]
    assert decision.weight.flatten().tolist() == pytest.approx([0.6, 0.5, 0.9, 0.6])


def test_ties_go_to_the_earlier_token():
    decision = expert_preferred(torch.ones(2, 5, 2), (3, 2))
    assert decision.index.squeeze(-1).tolist() == [[1, 1, 0, 0, 0]] * 2


def naive_expert_preferred(scores, counts):
    T, E = scores.shape
    index, free = [0] * T, set(range(T))
    for expert in range(E - 1, 0, -1):
        best = sorted(free, key=lambda token: (-scores[token, expert].item(), token))[: counts[expert]]
        for token in best:
            index[token] = expert
        free -= set(best)
    return index


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_expert_preferred_equals_the_naive_loop_with_exact_counts(data):
    E, T = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 20))
    cuts = sorted(data.draw(st.lists(st.integers(0, T), min_size=E - 1, max_size=E - 1)))
    counts = tuple(b - a for a, b in zip([0, *cuts], [*cuts, T], strict=True))
    scores = torch.randn(2, T, E, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    decision = expert_preferred(scores, counts)
    for item in range(2):
        assert decision.index[item, :, 0].tolist() == naive_expert_preferred(scores[item], counts)
    assert decision.counts.tolist() == [2 * n for n in counts]


def test_permuting_tokens_permutes_the_choice():
    scores = torch.randn(3, 17, 4)
    order = torch.randperm(17)
    plain, moved = expert_preferred(scores, (5, 4, 4, 4)), expert_preferred(scores[:, order], (5, 4, 4, 4))
    assert torch.equal(plain.index[:, order], moved.index)


@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, float("inf"), float("-inf"), float("nan")])
def test_counts_stay_exact_whatever_the_scores(value):
    scores = torch.randn(2, 9, 3)
    scores[:, ::2] = value
    assert expert_preferred(scores, (4, 3, 2)).counts.tolist() == [8, 6, 4]


def test_masked_tokens_take_nobodys_place():
    # Expert 2 likes the masked token 2 best, and takes the next one instead; the first expert gets what remains.
    scores = torch.tensor([[[0.1, 0.6, 0.3], [0.3, 0.5, 0.2], [0.0, 0.1, 0.9], [0.6, 0.3, 0.1]]])
    mask = torch.tensor([[True, True, False, True]])
    decision = expert_preferred(scores, (2, 1, 1), mask)
    assert decision.index.flatten().tolist() == [2, 1, NOBODY, 0]
    assert decision.weight.flatten().tolist() == pytest.approx([0.3, 0.5, 0, 0.6])
    # Where fewer are left than all want, the last experts come first.
    few = torch.tensor([[False, True, True, False]])
    assert expert_preferred(scores, (1, 2, 1), few).index.flatten().tolist() == [NOBODY, 1, 2, NOBODY]
    assert expert_preferred(scores, (1, 0, 3), few).index.flatten().tolist() == [NOBODY, 2, 2, NOBODY]
    alone = expert_preferred(scores[:, mask[0]], (1, 1, 1))
    assert torch.equal(alone.index, decision.index[:, mask[0]])


@pytest.mark.parametrize("router", [ExpertPreferredRouter, lambda score: ComposedRouter(score, [Softmax()], top_1)])
@pytest.mark.parametrize("kind", ["linear", "sum", "trailing", "loss"])
def test_finite_tokens_give_finite_weights_in_half_precision_too(router, kind):
    scores = {
        "linear": Linear(8, 4),
        "sum": Sum([Linear(8, 4), Linear(8, 4)]),
        "trailing": TrailingEnergy(2, 4),
        "loss": ExpectedLoss(2, 8, 4),
    }
    made = router(scores[kind])
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    even = Signal(counts=(2, 2, 2, 2))
    for tokens in (torch.randn(1, 8, 8) * 1e20, (torch.randn(1, 8, 8) * 6e4).clamp(-6e4, 6e4).half()):
        routing = made.to(tokens.dtype)(tokens, even)
        assert routing.weight.isfinite().all()
        spoilt = tokens.index_fill(1, torch.tensor(3), torch.nan)
        assert made(spoilt, even).counts.sum() == 8


def test_a_linear_score_is_in_single_precision_whatever_surrounds_it():
    score, tokens = Linear(6, 3), torch.randn(2, 5, 6)
    torch.nn.init.normal_(score.weight)
    single = score(tokens, Signal())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(tokens, Signal()), single)
    assert score.bfloat16()(tokens.bfloat16(), Signal()).dtype == torch.float32


def test_trailing_energy_orders_tokens_the_same_with_every_expert():
    score = TrailingEnergy(2, 4)
    tokens = torch.randn(2, 30, 6)
    score.calibrate(tokens)
    probabilities = score(tokens, Signal()).softmax(-1)
    energy = tokens[..., 2:].square().sum(-1)
    for expert in (1, 2, 3):
        assert torch.equal(probabilities[..., expert].argsort(1), energy.argsort(1))


def test_scores_add_up_and_count_their_macs():
    parts = [Linear(6, 3), TrailingEnergy(2, 3)]
    tokens = torch.randn(2, 5, 6)
    separate = torch.stack([part(tokens, Signal()) for part in parts])
    assert torch.allclose(Sum(parts)(tokens, Signal()), separate.sum(0))
    assert Sum(parts).macs(5) == 5 * 6 * 3
    assert Uniform(3)(tokens, Signal()).shape == (2, 5, 3)


def test_errors_name_rule_value_and_repair():
    with pytest.raises(ValueError, match=r"sum to 1; got 0.9 .* Use nestor.routing.capacity.solve"):
        Capacity(fractions=(0.4, 0.5))
    with pytest.raises(ValueError, match=r"budget must lie in \[0.125, 1\] .* got 0.05"):
        solve(0.05, DOUBLING)
    with pytest.raises(ValueError, match="costs must not decrease"):
        solve(0.5, (1, 0.5))
    with pytest.raises(ValueError, match="2 numbers that sum to 5"):
        expert_preferred(torch.randn(1, 5, 2), (2, 2))
    with pytest.raises(ValueError, match="needs Signal"):
        ExpertPreferredRouter(Uniform(2))(torch.randn(1, 5, 2), Signal())
