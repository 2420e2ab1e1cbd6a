"""Laws that every kind of expert obeys, and grouped products against a plain loop."""

import pytest
import torch
from mixtures import EXPERTS, D, kinds, met, randomised
from safetensors.torch import load, save
from torch.nn import functional as F

from nestor.experts.cheap import Identity, Modulation, Zero
from nestor.experts.feedforward import GELU, RELU, SWIGLU, FeedForward
from nestor.experts.joined import Joined
from nestor.experts.lowrank import Bottleneck, Kronecker, LoRA
from nestor.experts.nested import Nested
from nestor.ops import grouped
from nestor.types import Experts

pytestmark = pytest.mark.usefixtures("one_thread")

LOADS = {
    "even": (3, 3, 3, 3, 3, 3, 3, 3),
    "uneven": (0, 17, 1, 0, 2, 0, 0, 4),
    "one": (0, 0, 0, 0, 0, 0, 0, 9),
    "none": (0,) * 8,
}

# torch's own product came with 2.10; older ones take tiles.
WAYS = [grouped.linear, grouped.tiled, *([grouped.native] if hasattr(F, "grouped_mm") else [])]


def spread(experts: Experts, rows: int) -> torch.Tensor:
    """Counts that leave the second expert without a row."""
    E = len(experts.costs)
    counts = torch.zeros(E, dtype=torch.long)
    for row in range(rows):
        counts[(row % (E - 1) + 2) % E] += 1
    return counts


def gradients(experts: Experts) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in experts.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_equals_the_loop(way, load, biased):
    counts = torch.tensor(LOADS[load])
    R = int(counts.sum())
    made = [torch.randn(R, D), torch.randn(8, 12, D), *([torch.randn(8, 12)] if biased else [])]
    ours, theirs = ([part.clone().requires_grad_() for part in made] for _ in range(2))
    answer, naive = way(ours[0], counts, *ours[1:]), grouped.loop(theirs[0], counts, *theirs[1:])
    torch.testing.assert_close(answer, naive)
    toward = torch.randn(R, 12)
    (answer * toward).sum().backward()
    (naive * toward).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad)


def test_no_kind_of_experts_is_forgotten():
    assert kinds(Experts, "experts") <= met(build() for build in EXPERTS.values())


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_side_by_side_equal_experts_alone(name):
    experts = randomised(EXPERTS[name]())
    counts = spread(experts, 13)
    rows = torch.randn(13, D)
    together = experts(rows, counts)
    toward = torch.randn_like(together)
    if together.requires_grad:
        (together * toward).sum().backward()
    joint = gradients(experts)
    experts.zero_grad()
    joint = {name: gradient.clone() for name, gradient in joint.items()}
    start, answers = 0, []
    for expert, count in enumerate(counts.tolist()):
        alone = torch.zeros_like(counts)
        alone[expert] = count
        answers.append(experts(rows[start : start + count], alone))
        start += count
    naive = torch.cat(answers)
    torch.testing.assert_close(together, naive)
    if naive.requires_grad:
        experts.zero_grad()
        (naive * toward).sum().backward()
    for key, gradient in gradients(experts).items():
        torch.testing.assert_close(joint[key], gradient)


@pytest.mark.parametrize("name", EXPERTS)
def test_permuting_rows_of_one_expert_permutes_its_answers(name):
    experts = randomised(EXPERTS[name]())
    rows, order = torch.randn(7, D), torch.randperm(7)
    counts = torch.zeros(len(experts.costs), dtype=torch.long)
    counts[-1] = 7
    torch.testing.assert_close(experts(rows, counts)[order], experts(rows[order], counts))


@pytest.mark.parametrize("name", EXPERTS)
def test_every_parameter_learns_and_idle_experts_have_zero_gradients(name):
    experts = randomised(EXPERTS[name]())
    counts = torch.full((len(experts.costs),), 5)
    answer = experts(torch.randn(int(counts.sum()), D), counts)
    if answer.requires_grad:
        answer.square().sum().backward()
    assert all(gradient.abs().sum() > 0 for gradient in gradients(experts).values())
    experts.zero_grad()
    answer = experts(torch.randn(0, D), torch.zeros_like(counts))
    assert answer.shape[0] == 0
    if list(experts.parameters()):
        answer.sum().backward()
    assert not any(gradient.any() for gradient in gradients(experts).values())


@pytest.mark.parametrize("name", ["gelu", "swiglu", "many", "many_odd"])
def test_one_idle_expert_has_zero_and_not_missing_gradients(name):
    experts = EXPERTS[name]()
    counts = torch.full((len(experts.costs),), 3)
    counts[1] = 0
    experts(torch.randn(int(counts.sum()), D), counts).square().sum().backward()
    for gradient in gradients(experts).values():
        assert not gradient[1].any()
        assert gradient[0].any()
        assert gradient[-1].any()


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e12, 1e-30])
def test_answers_are_numbers_whatever_the_rows(name, value):
    experts = randomised(EXPERTS[name]())
    counts = spread(experts, 9)
    rows = torch.full((9, D), value)
    rows[::2] *= -1
    assert experts(rows, counts).isfinite().all()


@pytest.mark.parametrize("name", EXPERTS)
def test_half_precision_stays_near_single(name):
    experts = randomised(EXPERTS[name]())
    counts, rows = spread(experts, 13), torch.randn(13, D)
    single = experts(rows, counts)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(experts(rows, counts).float(), single, rtol=0.05, atol=0.1)
    half = experts.bfloat16()(rows.bfloat16(), counts)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("name", EXPERTS)
def test_saved_and_loaded_experts_answer_the_same(name):
    experts, other = randomised(EXPERTS[name]()), EXPERTS[name]()
    state = experts.state_dict()
    other.load_state_dict(load(save(state)) if state else state)
    counts, rows = spread(experts, 13), torch.randn(13, D)
    assert torch.equal(experts(rows, counts), other(rows, counts))


@pytest.mark.parametrize("kind", [LoRA(D, 2, 3), Bottleneck(D, 2, 3), Kronecker(D, 2, 1, 3), Zero(3)])
def test_additions_are_nothing_at_first(kind):
    assert not kind(torch.randn(6, D), torch.tensor([1, 3, 2])).any()


@pytest.mark.parametrize("kind", [Identity(3), Modulation(D, 3)])
def test_identities_are_identities_at_first(kind):
    rows = torch.randn(6, D)
    assert torch.equal(kind(rows, torch.tensor([1, 3, 2])), rows)


@pytest.mark.parametrize("activation", [GELU, SWIGLU, RELU])
def test_equal_experts_equal_the_dense_network(activation):
    experts = FeedForward(D, 6, 3, activation=activation)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn_like(parameter[:1]).expand_as(parameter))
    assert experts.inward_bias is not None
    rows = torch.randn(9, D)
    hidden = activation.apply(F.linear(rows, experts.inward[0], experts.inward_bias[0]))
    assert experts.outward_bias is not None
    dense = F.linear(hidden, experts.outward[0], experts.outward_bias[0])
    for counts in ((9, 0, 0), (2, 3, 4), (0, 9, 0)):
        torch.testing.assert_close(experts(rows, torch.tensor(counts)), dense)


@pytest.mark.parametrize("activation", [GELU, SWIGLU])
def test_a_nested_expert_is_the_network_cut_to_its_prefix(activation):
    experts = Nested((0, 4, 8), (0, 3, 6), activation=activation)
    torch.nn.init.normal_(experts.inward_bias)
    torch.nn.init.normal_(experts.outward_bias)
    rows = torch.randn(5, D)
    for j, (d, h) in enumerate([(0, 0), (4, 3), (8, 6)]):
        inward = torch.cat([part[:h, :d] for part in experts.inward])
        bias = torch.cat([part[:h] for part in experts.inward_bias[j]])
        expected = torch.zeros(5, D)
        if d:
            hidden = activation.apply(rows[:, :d] @ inward.T + bias)
            expected[:, :d] = hidden @ experts.outward[:d, :h].T + experts.outward_bias[j, :d]
        torch.testing.assert_close(experts(rows, 5 * F.one_hot(torch.tensor(j), 3)), expected)
    assert experts.costs == tuple((activation.fan + 1) * cost for cost in (0, 12, 48))


def test_kronecker_products_equal_the_matrix():
    experts = randomised(Kronecker(D, 4, 3, 2, scale=0.3, out=12))
    assert isinstance(experts, Kronecker)
    rows = torch.randn(5, D)
    expected = torch.cat([rows[:2] @ experts.matrix(0), rows[2:] @ experts.matrix(1)])
    torch.testing.assert_close(experts(rows, torch.tensor([2, 3])), expected)


def test_costs_are_multiply_accumulates():
    assert FeedForward(D, 6, 2).costs == (2 * 6 * D,) * 2
    assert FeedForward(D, 6, 2, activation=SWIGLU, out=3).costs == (2 * 6 * D + 6 * 3,) * 2
    assert LoRA(D, 2, 2, out=4).costs == (2 * D + 2 * 4,) * 2
    # Four cells of 2 into 4 * 3 numbers, 3 * 4 mixtures of 4, and 4 cells of 12 into 3.
    assert Kronecker(D, 4, 3, 1, out=12).costs == (4 * 2 * 12 + 4 * 12 * 4 + 4 * 12 * 3,)
    assert Joined([FeedForward(D, 6, 2), Identity(), Zero()]).costs == (96, 96, 0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeedForward(8, 6, 2)(torch.ones(3, 7), torch.tensor([1, 2])), r"need rows \(R, 8\).*got \(3, 7\)"),
        (lambda: FeedForward(8, 6, 2)(torch.ones(3, 8), torch.tensor([1, 1, 1])), r"counts \(2,\); got"),
        (lambda: Nested((4, 4), (2, 2)), "widths must rise"),
        (lambda: Nested((4, 8), (2,)), "one of each for every expert"),
        (lambda: Nested((), ()), "widths must rise"),
        (lambda: Nested((4, 8), (0, 2)), "at least one unit"),
        (lambda: Kronecker(8, 3, 1, 2), "terms must divide the widths 8 and 8; got 3"),
        (lambda: Joined([]), "experts to join; got none"),
    ],
)
def test_errors_name_rule_value_and_repair(call, message):
    with pytest.raises(ValueError, match=message):
        call()
