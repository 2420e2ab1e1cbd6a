"""Experts that remember, round or hush, scores over graphs, and what tasks tell of experts: by hand and by parity."""

import copy
import math
from functools import partial

import pytest
import torch
from mixtures import ROUTERS, D, E, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.experts.adapted import Adapted
from nestor.experts.feedforward import GELU, SWIGLU, FeedForward
from nestor.experts.gated import Gated
from nestor.experts.memory import Memory
from nestor.experts.rounded import Rounded, shift, ternary
from nestor.layers.mixture import Mixture
from nestor.routing.adjust import Softmax
from nestor.routing.graph import Graph, alone, around, nearest
from nestor.routing.learned import MLP, Dot
from nestor.routing.losses import affinity, task_information
from nestor.routing.router import ComposedRouter
from nestor.types import Origin, Signal, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("read", [1, 3, 9])
def test_a_memory_reads_the_best_of_all_pairs(read: int):
    memory = randomised(Memory(D, 3, 2, query=4, read=read, out=5))
    assert isinstance(memory, Memory)
    rows, expected = torch.randn(7, D), []
    for row in rows:
        query = memory.query[1] @ row
        keys = torch.cat([memory.first[1].repeat_interleave(3, 0), memory.second[1].repeat(3, 1)], 1)
        likeness = keys @ query
        best = likeness.topk(read)
        expected.append(best.values.softmax(0) @ memory.values[1][best.indices])
    torch.testing.assert_close(memory(rows, torch.tensor([0, 7])), torch.stack(expected))
    assert memory.costs == (4 * D + 2 * 3 * 2 + read * 5,) * 2


def test_shifts_are_powers_of_two_and_multiply_like_shifts():
    weight = torch.tensor([0.0, 0.3, -0.7, 0.75, 5.0, -1e-9])
    assert shift(weight).tolist() == [0.0, 0.25, -0.5, 1.0, 1.0, -(2.0**-14)]
    assert ternary(torch.tensor([[0.1, -1.0, 2.0, 0.5]])).flatten().tolist() == pytest.approx([0.0, -0.9, 0.9, 0.9])
    assert not ternary(torch.zeros(2, 2)).any()
    # With whole numbers a shift by the exponent is the product.
    whole = torch.randint(-(2**20), 2**20, (6, 4))
    powers = shift(torch.randn(4, 3) * 0.3)
    exponent = powers.abs().log2().round().long()
    by_shift = sum(powers[i].sign() * (whole[:, i : i + 1] * 2**14 >> -exponent[i]) for i in range(4))
    torch.testing.assert_close(by_shift / 2**14, whole.float() @ powers)


@pytest.mark.parametrize("rounding", [shift, ternary])
def test_rounded_experts_are_networks_of_rounded_weights_and_learn_as_if_they_were_not(rounding):
    experts = randomised(Rounded(D, 6, 2, rounding=rounding))
    assert isinstance(experts, Rounded)
    inward, outward = rounding(experts.inward.detach()), rounding(experts.outward.detach())
    plain = FeedForward.of(inward, outward, experts.inward_bias, experts.outward_bias, activation=GELU)
    rows, counts = torch.randn(7, D), torch.tensor([3, 4])
    assert torch.equal(experts(rows, counts), plain(rows, counts))
    experts(rows, counts).square().sum().backward()
    plain(rows, counts).square().sum().backward()
    torch.testing.assert_close(experts.inward.grad, plain.inward.grad)
    assert experts.costs == plain.costs


class QwenTogether(nn.Module):
    """Qwen's block with the matrices of its shared network as two parameters."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = [block]
        shared = block.get_submodule("shared_expert")
        self.inward = nn.Parameter(torch.cat([shared.get_parameter(f"{name}_proj.weight") for name in ("gate", "up")]))

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.inward.chunk(2)
        given = {"shared_expert.gate_proj.weight": gate, "shared_expert.up_proj.weight": value}
        return torch.func.functional_call(self.block[0], given, (tokens,))


def test_parity_with_qwen_and_its_gated_shared_expert():
    from functools import partial

    from transformers import Qwen2MoeConfig
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    from nestor.routing.choose import top_k

    config = Qwen2MoeConfig(
        hidden_size=16,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=10,
        num_experts=6,
        num_experts_per_tok=2,
        norm_topk_prob=False,
    )
    config._experts_implementation = "eager"
    block = Qwen2MoeSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer = Mixture(
        ComposedRouter(Dot(16, 6), [Softmax()], partial(top_k, k=2)),
        FeedForward(16, 12, 6, activation=SWIGLU, bias=False),
        Gated(FeedForward(16, 10, 1, activation=SWIGLU, bias=False), 16),
    )
    foreign = QwenTogether(block)
    named = dict(block.named_parameters())
    ours = {
        "router.score.weight": named["gate.weight"],
        "experts.inward": named["experts.gate_up_proj"],
        "experts.outward": named["experts.down_proj"],
        "shared.gate": named["shared_expert_gate.weight"],
        "shared.experts.inward": foreign.inward,
        "shared.experts.outward": named["shared_expert.down_proj.weight"],
    }
    assert ours.keys() == dict(layer.named_parameters()).keys()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(ours[name].reshape(parameter.shape))
    tokens = torch.randn(2, 7, 16)
    answer, expected = layer(tokens)[0], foreign(tokens)
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
    toward = torch.randn_like(answer)
    (answer * toward).sum().backward()
    (expected * toward).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        theirs = ours[name].grad
        assert theirs is not None
        torch.testing.assert_close(parameter.grad, theirs.reshape(parameter.shape), rtol=1e-4, atol=1e-5)


def test_neighbours_on_a_grid_are_those_around():
    near = around(torch.randn(1, 12, D), Signal(grid=(3, 4)))[0]
    assert near[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert near[5].nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert torch.equal(near, near.T)
    for signal in (Signal(), Signal(grid=(3, 3))):
        with pytest.raises(ValueError, match=r"need Signal\(grid=\.\.\.\) of 12 patches; got"):
            around(torch.randn(1, 12, D), signal)
    likes = torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]])
    assert nearest(likes, Signal(), k=1)[0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    masked = nearest(likes, Signal(mask=torch.tensor([[True, False, True, True]])), k=1)[0]
    assert masked[0].tolist() == [True, False, False, True]
    assert masked[1].tolist() == [False, True, False, False]


def test_a_graph_of_loops_is_a_network_of_each_token():
    score, tokens = Graph(D, 5, E, neighbours=alone), torch.randn(2, 6, D)
    hidden = F.relu(F.linear(tokens, score.inward, score.bias))
    torch.testing.assert_close(score(tokens, Signal()), F.linear(hidden, score.outward))
    assert MLP(D, 5, E)(tokens, Signal()).shape == score(tokens, Signal()).shape


def test_a_graph_mixes_neighbours_and_gives_the_class_token_their_mean():
    score, tokens = Graph(D, 5, E), torch.randn(2, 1 + 6, D)
    logits = score(tokens, Signal(grid=(2, 3)))
    near = around(tokens[:, 1:], Signal(grid=(2, 3)))[0].float()
    degree = near.sum(1)
    flow = near / (degree.unsqueeze(1) * degree).sqrt()
    expected = F.linear(F.relu(flow @ F.linear(tokens[:, 1:], score.inward) + score.bias), score.outward)
    torch.testing.assert_close(logits[:, 1:], expected)
    torch.testing.assert_close(logits[:, 0], expected.mean(1))
    changed = tokens.clone()
    changed[:, 6] += 1
    differs = (score(changed, Signal(grid=(2, 3))) - logits)[0, 1:].abs().sum(-1) > 1e-6
    assert differs.tolist() == [False, True, True, False, True, True]
    with pytest.raises(ValueError, match="the grid must fit the tokens"):
        score(tokens, Signal(grid=(3, 3)))


@pytest.mark.parametrize("neighbours", [around, partial(nearest, k=2), alone])
def test_a_graph_beside_a_class_token_hears_no_padding(neighbours):
    score, tokens = Graph(D, 5, E, neighbours=neighbours), torch.randn(2, 2 + 6, D)
    # The last row of the grid is padding, of the first item alone.
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, 5:] = False
    padded = score(tokens, Signal(grid=(2, 3), mask=mask, ids=torch.zeros(2, 8)))
    torch.testing.assert_close(padded[:1, :5], score(tokens[:1, :5], Signal(grid=(1, 3))))
    torch.testing.assert_close(padded[1:], score(tokens[1:], Signal(grid=(2, 3))))
    torch.testing.assert_close(padded[0, 0], padded[0, 2:5].mean(0))
    mask[0, 2:] = False
    assert not score(tokens, Signal(grid=(2, 3), mask=mask))[0, :2].any()


def routed(probable: list[list[float]]) -> Sparse:
    """Items of one token each, with these probabilities."""
    scores = torch.tensor(probable).unsqueeze(1)
    index = scores.argmax(-1, keepdim=True)
    return Sparse(scores, index, scores.gather(-1, index), Origin(scores.log(), scores.log(), index))


def test_the_information_of_tasks_about_experts_by_hand():
    routing = routed([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    found = affinity(routing, torch.tensor([0, 0, 1]), 3)
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.2], [0.2, 0.8], [0.0, 0.0]]))
    expected = math.log(2) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2)
    assert -task_information(found).item() == pytest.approx(expected, rel=1e-5)
    assert task_information(torch.full((3, 4), 0.25)).item() == pytest.approx(0, abs=1e-6)
    assert -task_information(torch.eye(4)).item() == pytest.approx(math.log(4), rel=1e-5)
    uneven = task_information(torch.eye(2), torch.tensor([3.0, 1.0])).item()
    assert -uneven == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), rel=1e-5)
    masked = affinity(routing, torch.tensor([0, 0, 1]), 2, torch.tensor([[True], [False], [True]]))
    torch.testing.assert_close(masked[0], torch.tensor([0.9, 0.1]))
    with pytest.raises(ValueError, match=r"a task in \[0, 2\) for each of 3 items"):
        affinity(routing, torch.tensor([0, 2, 1]), 2)


def test_descending_on_the_information_makes_tasks_claim_experts():
    router, tokens, task = ROUTERS["mixtral"](), torch.randn(12, 6, D), torch.arange(12) % 2
    tokens = tokens + 2 * F.one_hot(task, D).unsqueeze(1)
    optimizer, losses = torch.optim.SGD(router.parameters(), lr=2.0), []
    for _ in range(60):
        routing = router(tokens, Signal())
        assert isinstance(routing, Sparse)
        loss = task_information(affinity(routing, task, 2))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert -losses[-1] > 0.3
    assert -losses[-1] > 3 * -losses[0]


@pytest.mark.parametrize("which", [None, (2,), (3, 0)])
@pytest.mark.parametrize("activation", [GELU, SWIGLU])
def test_additions_change_nothing_at_first_and_then_only_what_they_are_for(which, activation):
    base = randomised(FeedForward(D, 6, 4, activation=activation))
    assert isinstance(base, FeedForward)
    rows, counts, before = torch.randn(11, D), torch.tensor([3, 2, 4, 2]), copy.deepcopy(base)
    adapted = Adapted(base, 2, which, scale=0.5)
    assert torch.equal(adapted(rows, counts), before(rows, counts))
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == [
        f"{part}.{name}" for part in ("inward", "outward") for name in ("down", "up")
    ]
    randomised(adapted.inward)
    randomised(adapted.outward)
    torch.testing.assert_close(adapted(rows, counts), adapted.merged()(rows, counts))
    changed = (adapted(rows, counts) - before(rows, counts)).abs().sum(1) > 1e-6
    expert = torch.arange(4).repeat_interleave(counts)
    chosen = torch.isin(expert, torch.tensor(which or range(4)))
    assert torch.equal(changed, chosen)
    adapted(rows, counts).square().sum().backward()
    for parameter in (*adapted.inward.parameters(), *adapted.outward.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.flatten(1).any(1).all()
    more = 2 * (D + activation.fan * 6) + 2 * (6 + D)
    for number, (new, old) in enumerate(zip(adapted.costs, before.costs, strict=True)):
        assert new - old == (more if which is None or number in which else 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Adapted(FeedForward(8, 3, 2), 1, (1, 1)), r"some of 0 to 1, each once; got \(1, 1\)"),
        (lambda: Adapted(FeedForward(8, 3, 2), 1, (2,)), r"some of 0 to 1, each once; got \(2,\)"),
        (lambda: Memory(8, 3, 2, query=3, read=1), "an even query and 1 to 9 values to read; got 3 and 1"),
        (lambda: Memory(8, 3, 2, query=4, read=10), "got 4 and 10"),
    ],
)
def test_errors_name_rule_value_and_repair(call, message):
    with pytest.raises(ValueError, match=message):
        call()
