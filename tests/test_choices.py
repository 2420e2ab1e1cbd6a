"""Choices, adjustments and capacities: values small enough to check by hand, naive loops, and bad input."""

import math
from functools import partial

import pytest
import torch

from nestor.routing import losses
from nestor.routing.adjust import Bias, GroupLimit, Noise, Proposal, Softmax, balance
from nestor.routing.capacity import per_expert
from nestor.routing.choose import expert_choice, grouped_top_k, sampled, soft, threshold, top_k, top_p
from nestor.routing.given import Given, Hash, Jittered, Pooled, Segment, TaskBias, TaskDot, contents
from nestor.routing.learned import Cosine, Dot, ProductKey, Slots
from nestor.routing.refine import drop, drop_in_batch, hard, heaviest_first, renormalise, unweighted
from nestor.routing.router import ComposedRouter
from nestor.types import Signal, Soft, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

NONE = -torch.inf


def table(*rows: list[float]) -> torch.Tensor:
    """One item."""
    return torch.tensor([list(rows)])


def decided(index: list[list[int]], weight: list[list[float]], experts: int) -> Sparse:
    scores = torch.full((1, len(index), experts), 1 / experts)
    return Sparse(scores=scores, index=torch.tensor([index]), weight=torch.tensor([weight]))


def propose(scores: torch.Tensor) -> Proposal:
    return Proposal(scores=scores, preference=scores, noisy=scores)


def test_top_k_by_hand():
    routing = top_k(table([0.1, 0.6, 0.3], [0.2, 0.2, 0.6]), k=2)
    assert routing.index.tolist() == [[[1, 2], [2, 0]]]
    assert routing.weight.flatten().tolist() == pytest.approx([0.6, 0.3, 0.6, 0.2])
    assert renormalise(routing, scale=2).weight.flatten().tolist() == pytest.approx([4 / 3, 2 / 3, 1.5, 0.5])


def test_a_preference_decides_and_the_scores_weigh():
    scores = table([0.1, 0.6, 0.3])
    routing = top_k(scores, table([0.9, 0.1, NONE]), k=3)
    assert routing.index.tolist() == [[[0, 1, -1]]]
    assert routing.weight.flatten().tolist() == pytest.approx([0.1, 0.6, 0.0])
    assert top_k(scores, table([math.nan, 0.1, NONE]), k=1).index.tolist() == [[[1]]]


def test_top_p_takes_as_many_as_it_needs():
    scores = table([0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.25, 0.25, 0.5])
    assert top_p(scores, p=0.6).index.tolist() == [[[0, -1, -1], [0, 1, -1], [2, 0, -1]]]
    assert top_p(scores, p=1).index.tolist() == [[[0, 1, 2], [0, 1, 2], [2, 0, 1]]]
    assert top_p(scores, p=0.6, most=1).index.tolist() == [[[0], [0], [2]]]
    assert top_p(scores, p=1e-6).counts.tolist() == [2, 0, 1]


def test_threshold_takes_none_or_all():
    scores = table([0.6, 0.7, 0.2], [0.1, 0.2, 0.3], [0.5, 0.9, 0.5])
    assert threshold(scores, least=0.5).index.tolist() == [[[1, 0, -1], [-1, -1, -1], [1, 0, 2]]]
    assert threshold(scores, least=0.5, most=1).index.tolist() == [[[1], [-1], [1]]]
    relative = threshold(scores, least=0.6 * scores.amax(-1, keepdim=True))
    assert relative.index.tolist() == [[[1, 0, -1], [2, 1, -1], [1, -1, -1]]]


def test_grouped_top_k_levels_the_groups():
    routing = grouped_top_k(table([0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]), k=2, groups=2)
    assert routing.index.tolist() == [[[0, 2], [1, 3]]]
    assert routing.weight.flatten().tolist() == pytest.approx([0.4, 0.2, 0.2, 0.4])


def test_draws_without_replacement_have_the_right_odds():
    odds = torch.tensor([0.5, 0.3, 0.2, 0.0]).expand(1, 20000, 4)
    index = sampled(odds, k=2).index[0]
    assert not (index == 3).any()
    assert (index[:, 0] != index[:, 1]).all()
    first = index[:, 0].bincount(minlength=3) / 20000
    torch.testing.assert_close(first, torch.tensor([0.5, 0.3, 0.2]), atol=0.02, rtol=0)
    second = index[index[:, 0] == 0, 1].bincount(minlength=3).float()
    torch.testing.assert_close(second / second.sum(), torch.tensor([0, 0.6, 0.4]), atol=0.02, rtol=0)


def test_expert_choice_by_hand_and_exact():
    scores = table([0.9, 0.1], [0.8, 0.7], [0.2, 0.6], [0.1, 0.3])
    routing = expert_choice(scores, factor=1)
    assert routing.index.tolist() == [[[0, -1], [0, 1], [1, -1], [-1, -1]]]
    assert routing.counts.tolist() == [2, 2]
    assert expert_choice(scores, counts=(1, 3)).counts.tolist() == [1, 3]
    assert expert_choice(scores, factor=1, most=1).index.tolist() == [[[0], [0], [1], [-1]]]
    many = expert_choice(torch.rand(3, 11, 5), counts=(0, 1, 4, 11, 2))
    assert many.counts.tolist() == [0, 3, 12, 33, 6]


def test_soft_by_hand():
    # One expert with one slot: the slot is a mixture of both tokens, and each token gets all of the slot.
    routing = soft(table([0.0], [math.log(3)]), slots=1)
    torch.testing.assert_close(routing.give.flatten(), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(routing.take.flatten(), torch.ones(2))
    logits = torch.randn(2, 5, 6)
    two = soft(logits, slots=2)
    torch.testing.assert_close(two.give.sum(-1), torch.ones(2, 3, 2))
    torch.testing.assert_close(two.scores.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(two.give[0, 1, 0], logits[0, :, 2].softmax(0))
    torch.testing.assert_close(two.take[1, 4].flatten(), logits[1, 4].softmax(0))


def test_slots_without_keys_give_the_mean_token():
    score = Slots(8, 3, slots=2)
    torch.nn.init.zeros_(score.phi)
    tokens = torch.randn(2, 5, 8)
    routing = ComposedRouter(score, [], partial(soft, slots=2))(tokens, Signal())
    mean = tokens.mean(1).repeat(1, 2).unflatten(-1, (2, 8)).repeat(3, 1, 1)
    torch.testing.assert_close(routing.dispatch(tokens), mean.flatten(0, 1))


def test_one_hot_soft_equals_sparse():
    B, T, D, E, C = 2, 6, 4, 3, 2
    # Every expert serves two tokens of each item.
    index = torch.stack([torch.randperm(T) % E for _ in range(B)]).unsqueeze(-1)
    sparse = Sparse(scores=torch.zeros(B, T, E), index=index, weight=torch.rand(B, T, 1))
    give = torch.zeros(B, E, C, T)
    for b in range(B):
        for e in range(E):
            for c, t in enumerate((index[b, :, 0] == e).nonzero().flatten().tolist()):
                give[b, e, c, t] = 1
    dense = Soft(scores=sparse.scores, give=give, take=give.permute(0, 3, 1, 2) * sparse.weight.unsqueeze(-1))
    tokens = torch.randn(B, T, D)
    assert torch.equal(sparse.counts, dense.counts)
    assert torch.equal(sparse.dispatch(tokens), dense.dispatch(tokens))
    rows = torch.randn(B * T, 5)
    torch.testing.assert_close(sparse.combine(rows), dense.combine(rows))


def naive_drop(index: torch.Tensor, capacity: int, order: torch.Tensor, experts: int) -> torch.Tensor:
    index, taken = index.clone(), [0] * experts
    for k in range(index.shape[1]):
        for t in order.tolist():
            expert = int(index[t, k])
            if expert >= 0:
                index[t, k] = expert if taken[expert] < capacity else -1
                taken[expert] += 1
    return index


@pytest.mark.parametrize("capacity", [1, 2, 5, 99])
def test_dropping_equals_a_naive_queue_and_keeps_capacities(capacity):
    scores = torch.randn(3, 12, 4).softmax(-1)
    routing = threshold(scores, least=0.15, most=3)
    heavy = routing.weight.amax(-1).argsort(dim=1, descending=True, stable=True)
    for item in range(3):
        first, heaviest = drop(routing, capacity=capacity), drop(routing, capacity=capacity, order=heaviest_first)
        assert torch.equal(first.index[item], naive_drop(routing.index[item], capacity, torch.arange(12), 4))
        assert torch.equal(heaviest.index[item], naive_drop(routing.index[item], capacity, heavy[item], 4))
    batch = drop_in_batch(routing, capacity=capacity)
    assert torch.equal(
        batch.index.flatten(0, 1), naive_drop(routing.index.flatten(0, 1), capacity, torch.arange(36), 4)
    )
    assert (batch.counts == routing.counts.clamp_max(capacity)).all()
    assert not batch.weight[batch.index == -1].any()
    served = batch.combine(torch.ones(int(batch.counts.sum()), 1)).squeeze(-1)
    assert not served[(batch.index == -1).all(-1)].any()


def test_dropping_keeps_the_heaviest():
    routing = decided([[0], [0], [0]], [[0.2], [0.9], [0.5]], 2)
    assert drop(routing, capacity=2).index.flatten().tolist() == [0, 0, -1]
    assert drop(routing, capacity=2, order=heaviest_first).index.flatten().tolist() == [-1, 0, 0]


def test_first_choices_come_before_second_ones():
    routing = decided([[1, 0], [0, 1]], [[0.9, 0.1], [0.6, 0.4]], 2)
    assert drop(routing, capacity=1).index.tolist() == [[[1, -1], [0, -1]]]


def test_capacity_is_never_less_than_a_token_nor_more_than_all():
    assert per_expert(torch.tensor(100), 10, 1.2) == 12
    assert per_expert(torch.tensor(49), 8, 1.0, choices=2) == 13
    assert per_expert(torch.tensor(10), 100, 0.5) == 1
    assert per_expert(torch.tensor(10), 2, 100) == 10
    assert per_expert(torch.tensor(0), 4, 1.0) == 0
    assert per_expert(torch.tensor([0, 1, 10, 20]), 10, 1.2).tolist() == [0, 1, 2, 3]


def test_weights_can_be_left_out_with_or_without_their_gradient():
    weight = torch.tensor([[[0.6, 0.3], [0.5, 0.0]]], requires_grad=True)
    routing = Sparse(scores=torch.zeros(1, 2, 3), index=torch.tensor([[[0, 1], [2, -1]]]), weight=weight)
    for refined in (unweighted(routing), hard(routing)):
        torch.testing.assert_close(refined.weight, torch.tensor([[[1.0, 1.0], [1.0, 0.0]]]))
    hard(routing).weight.sum().backward()
    assert weight.grad is not None
    assert weight.grad.eq(1).all()


def test_a_bias_changes_the_choice_and_not_the_weight():
    bias = Bias(3)
    bias.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    scores = table([0.5, 0.3, 0.2])
    proposal = bias(propose(scores), Signal())
    routing = top_k(proposal.scores, proposal.preference, k=1)
    assert routing.index.item() == 2
    assert routing.weight.item() == pytest.approx(0.2)
    moved = balance(bias.bias, torch.tensor([10, 4, 1]), rate=0.1)
    assert moved.tolist() == pytest.approx([-0.1, 0.1, 1.1])
    assert bias.bias.tolist() == [0, 0, 1]


def test_a_moving_bias_balances_without_a_loss():
    score, bias = torch.randn(1, 200, 4) + torch.tensor([2.0, 0.0, 0.0, -2.0]), Bias(4)

    def counts() -> torch.Tensor:
        proposal = bias(propose(score), Signal())
        return top_k(proposal.scores, proposal.preference, k=1).counts

    assert counts().max() > 2.5 * 50
    for _ in range(60):
        bias.bias.copy_(balance(bias.bias, counts(), rate=0.1))
    assert counts().max() < 1.3 * 50


def test_group_limit_keeps_the_best_groups():
    limited = GroupLimit(groups=2, keep=1)(propose(table([0.9, 0.0, 0.5, 0.6], [0.9, 0.3, 0.5, 0.6])), Signal())
    assert limited.preference[0, 0].tolist() == pytest.approx([NONE, NONE, 0.5, 0.6])
    assert limited.preference[0, 1].tolist() == pytest.approx([0.9, 0.3, NONE, NONE])
    best = GroupLimit(groups=2, keep=1, best=1)(propose(table([0.9, 0.0, 0.5, 0.6])), Signal())
    assert best.preference[0, 0].tolist() == pytest.approx([0.9, 0.0, NONE, NONE])


def test_noise_and_jitter_are_for_training_only():
    logits = torch.zeros(1, 4000, 4)
    noise = Noise(0.25)
    noisy = noise(propose(logits), Signal())
    assert noisy.noisy.std().item() == pytest.approx(0.25, rel=0.05)
    assert noise.eval()(propose(logits), Signal()).noisy is logits
    tokens, jittered = torch.ones(1, 50, 4), Jittered(Dot(4, 3), span=0.1)
    assert not torch.equal(jittered(tokens, Signal()), jittered.score(tokens, Signal()))
    jittered.eval()
    assert torch.equal(jittered(tokens, Signal()), jittered.score(tokens, Signal()))


def test_a_hash_depends_on_the_key_alone_and_is_even():
    ids = torch.arange(4000).view(1, 4000)
    score, tokens = Hash(8, key=contents), torch.empty(1, 4000, 2)
    scores = score(tokens, Signal(ids=ids))
    assert torch.equal(scores, Hash(8, key=contents)(torch.zeros(1, 4000, 3), Signal(ids=ids)))
    assert torch.equal(score(tokens, Signal(ids=ids.flip(1))), scores.flip(1))
    assert top_k(scores, k=2).counts.float().sub(1000).abs().max() < 150
    other = Hash(8, key=contents, seed=1)(tokens, Signal(ids=ids))
    assert (other.argmax(-1) == scores.argmax(-1)).float().mean() < 0.2
    # The value itself, so that no machine and no version decides differently.
    assert top_k(scores, k=1).index[0, :6, 0].tolist() == [2, 0, 6, 6, 0, 4]


def test_the_task_decides_or_takes_part():
    task, tokens = torch.tensor([1, 0, 2]), torch.randn(3, 4, 6)
    router = ComposedRouter(Given(3), [Softmax()], partial(top_k, k=1))
    routing = router(tokens, Signal(task=task))
    assert isinstance(routing, Sparse)
    assert routing.index[:, :, 0].tolist() == [[1] * 4, [0] * 4, [2] * 4]
    assert routing.weight.eq(1).all()
    dot = TaskDot(6, 3, 5)
    for item in range(3):
        expected = tokens[item] @ dot.weight[task[item]].T
        torch.testing.assert_close(dot(tokens, Signal(task=task))[item], expected)
    bias = TaskBias(3, 5)
    torch.nn.init.normal_(bias.bias)
    torch.testing.assert_close(bias(tokens, Signal(task=task))[:, 2], bias.bias[task])


def test_pooled_and_segment_judge_means_of_tokens_that_count():
    dot, tokens = Dot(6, 3), torch.randn(2, 7, 6)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    pooled = Pooled(dot)(tokens, Signal(mask=mask))
    torch.testing.assert_close(pooled[1, 6], dot.weight @ tokens[1, :4].mean(0))
    torch.testing.assert_close(pooled[0, 0], dot.weight @ tokens[0].mean(0))
    segments = Segment(dot, length=3)(tokens, Signal())
    torch.testing.assert_close(segments[0, 4], dot.weight @ tokens[0, 3:6].mean(0))
    torch.testing.assert_close(segments[0, 6], dot.weight @ tokens[0, 6])
    assert (Pooled(dot).macs(7), Segment(dot, length=3).macs(7)) == (18, 54)


def test_learned_scores_by_hand():
    cosine = Cosine(2, 2, project=2, temperature=0.5)
    with torch.no_grad():
        cosine.project.copy_(torch.eye(2))
        cosine.keys.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
    expected = torch.tensor([2.0, 2 * math.sqrt(0.5)])
    torch.testing.assert_close(cosine(torch.tensor([[[5.0, 0.0]]]), Signal())[0, 0], expected)
    with torch.no_grad():
        cosine.log_scale.fill_(50)
    assert cosine(torch.tensor([[[5.0, 0.0]]]), Signal())[0, 0, 0].item() == pytest.approx(100, rel=1e-4)
    keys = ProductKey(3, 4, query=2)
    with torch.no_grad():
        keys.query.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        keys.keys.copy_(torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]]))
    assert keys(torch.ones(1, 1, 3), Signal()).flatten().tolist() == [11, 21, 12, 22]
    assert keys.macs(1) == 6 + 4


def test_k_changes_between_calls_without_touching_a_parameter():
    router = ComposedRouter(Dot(6, 4), [Softmax()], partial(top_k, k=2), [renormalise])
    tokens, before = torch.randn(2, 5, 6), {name: tensor.clone() for name, tensor in router.state_dict().items()}
    for k in (1, 3, 4):
        router.choice = partial(top_k, k=k)
        assert int(router(tokens, Signal()).counts.sum()) == 10 * k
    router.choice = partial(threshold, least=2.0)
    assert int(router(tokens, Signal()).counts.sum()) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in router.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_k(torch.ones(1, 2, 3), k=4), r"k must lie in \[1, 3\], the number of experts; got 4"),
        (lambda: top_k(torch.ones(1, 2, 3), k=0), r"k must lie in \[1, 3\]"),
        (lambda: top_p(torch.ones(1, 2, 3), p=1.5), r"p must lie in \(0, 1\]; got 1.5"),
        (lambda: top_p(torch.ones(1, 2, 3), p=0.5, most=4), r"most must lie in \[1, 3\]"),
        (lambda: threshold(torch.ones(1, 2, 3), least=0.5, most=0), r"most must lie in \[1, 3\]"),
        (lambda: grouped_top_k(torch.ones(1, 2, 4), k=3, groups=2), "k must be a multiple of the 2 groups; got 3"),
        (lambda: grouped_top_k(torch.ones(1, 2, 4), k=3, groups=3), "groups must divide the 4 experts; got 3"),
        (lambda: expert_choice(torch.ones(1, 2, 3), counts=(1, 1, 3)), "between 0 and the 2 tokens; got"),
        (lambda: expert_choice(torch.ones(1, 2, 3), counts=(1, 1)), "counts must be 3 numbers"),
        (lambda: sampled(torch.ones(1, 2, 3), k=4), r"k must lie in \[1, 3\], the number of experts; got 4"),
        (lambda: threshold(torch.ones(1, 2, 3), least=0.5, most=4), r"most must lie in \[1, 3\].*got 4"),
        (lambda: expert_choice(torch.ones(1, 2, 3), factor=1, most=4), r"most must lie in \[1, 3\].*got 4"),
        (lambda: grouped_top_k(torch.ones(1, 2, 4), k=6, groups=2), r"k must lie in \[1, 4\].*got 6"),
        (lambda: expert_choice(torch.ones(1, 2, 3)), "give a factor or counts"),
        (lambda: expert_choice(torch.ones(1, 2, 3), factor=0), "capacity factor must be positive; got 0"),
        (lambda: soft(torch.ones(1, 2, 3), slots=2), "slots must divide the 3 scores of a token; got 2"),
        (lambda: drop(decided([[0]], [[1.0]], 2)), "give a factor or a capacity"),
        (lambda: drop(decided([[0]], [[1.0]], 2), capacity=0), "capacity must be at least one token; got 0"),
        (lambda: drop(decided([[0]], [[1.0]], 2), factor=-1), "capacity factor must be positive; got -1"),
        (lambda: losses.z(decided([[0]], [[1.0]], 2)), "routing without origin"),
        (lambda: losses.load(decided([[0]], [[1.0]], 2), 0.0), "needs a positive deviation; got 0.0"),
        (lambda: losses.group(decided([[0]], [[1.0]], 2), 3), "groups must divide the 2 experts; got 3"),
        (lambda: losses.gates(decided([[0]], [[1.0]], 2), costs=(1,)), "costs must be 2 numbers"),
        (lambda: Noise(0), "deviation must be positive; got 0"),
        (lambda: GroupLimit(groups=2, keep=3), r"keep must lie in \[1, 2\]"),
        (lambda: GroupLimit(groups=2, keep=1)(propose(torch.ones(1, 1, 3)), Signal()), "groups must divide the 3"),
        (lambda: ProductKey(8, 5, query=4), "Take 4 or 9 experts"),
        (lambda: Segment(Dot(8, 2), length=0), "at least one token; got 0"),
        (lambda: Jittered(Dot(8, 2), span=1), r"span must lie in \[0, 1\); got 1"),
        (lambda: Given(2)(torch.ones(1, 2, 3), Signal()), "one for each of 1 items; got None"),
        (lambda: Given(2)(torch.ones(1, 2, 3), Signal(task=torch.tensor([2]))), r"tasks must lie in \[0, 2\); got 2"),
        (lambda: Hash(2, key=contents)(torch.ones(1, 2, 3), Signal()), "needs Signal"),
        (
            lambda: ComposedRouter(Dot(3, 2), [], partial(top_k, k=1))(
                torch.ones(1, 2, 3), Signal(mask=torch.ones(1, 3, dtype=torch.bool))
            ),
            r"mask must be boolean of shape \(1, 2\); got torch.bool of \(1, 3\)",
        ),
        (
            lambda: ComposedRouter(Dot(3, 2), [], partial(soft, slots=1), [renormalise])(torch.ones(1, 2, 3), Signal()),
            "only sparse decisions can be refined; got Soft",
        ),
    ],
)
def test_errors_name_rule_value_and_repair(call, message):
    with pytest.raises(ValueError, match=message):
        call()
