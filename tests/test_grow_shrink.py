"""Networks that become experts and experts that become networks: what is exact is exact."""

from functools import partial

import pytest
import torch
from mixtures import ROUTERS, D, E, randomised, signal
from torch import Tensor
from torch.nn import functional as F

from nestor.experts.cheap import Identity
from nestor.experts.feedforward import GELU, RELU, SWIGLU, Activation, FeedForward
from nestor.experts.gated import Scaled
from nestor.experts.joined import Joined
from nestor.experts.lowrank import LoRA
from nestor.experts.stacked import average, pull, select
from nestor.layers.mixture import Mixture
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.refine import renormalise, unweighted
from nestor.routing.router import ComposedRouter
from nestor.routing.several import ByTask, Renamed
from nestor.surgery.grow import clusters, emerge, extend, keys, split, upcycle
from nestor.surgery.shrink import join, keep, merge
from nestor.types import NOBODY, Experts, Signal, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {"gelu": GELU, "swiglu": SWIGLU, "relu": RELU}


def network(activation: Activation = GELU, *, hidden: int = 12, experts: int = 1, bias: bool = True) -> FeedForward:
    made = randomised(FeedForward(D, hidden, experts, activation=activation, bias=bias))
    assert isinstance(made, FeedForward)
    return made


def alone(experts: Experts, rows: Tensor, number: int = 0) -> Tensor:
    return experts(rows, len(rows) * F.one_hot(torch.tensor(number), len(experts.costs)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_the_network_whatever_the_router(kind: str, bias: bool):
    one, x = network(KINDS[kind], bias=bias), torch.randn(2, 7, D)
    copies = upcycle(one, E)
    torch.testing.assert_close(Mixture(ROUTERS["mixtral"](), copies)(x)[0], alone(one, x.flatten(0, 1)).view(2, 7, D))
    noisy, again = (upcycle(one, E, noise=0.1, seed=3) for _ in range(2))
    assert torch.equal(noisy.inward, again.inward)
    off = (noisy.inward - copies.inward).square().mean().sqrt() / copies.inward.square().mean().sqrt()
    assert off.detach().item() == pytest.approx(0.1, rel=0.2)
    assert not torch.equal(noisy.inward[0], noisy.inward[1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_cut_by_its_units_adds_up_to_itself_and_can_be_put_together(kind: str, bias: bool):
    one, rows = network(KINDS[kind], bias=bias), torch.randn(9, D)
    layer = emerge(one, 4, 4)
    torch.testing.assert_close(layer(rows[None])[0][0], alone(one, rows))
    back = join(layer.experts) if isinstance(layer.experts, FeedForward) else one
    torch.testing.assert_close(alone(back, rows), alone(one, rows))
    # The units are those of before in another order.
    assert torch.equal(keys(back).sort(0).values, keys(one).sort(0).values)
    sparse = emerge(one, 4, 2)
    answer, (routing,) = sparse(rows[None])
    assert routing.counts.sum() == 18
    assert answer.shape == (1, 9, D)
    assert not sparse.router.get_parameter("score.weight").requires_grad


def test_the_router_of_units_keeps_more_of_the_answer_than_chance():
    # Units come in four bundles that look for four directions.
    directions = torch.eye(D)[:4]
    inward = (directions.repeat_interleave(6, 0) + 0.1 * torch.randn(24, D))[torch.randperm(24)]
    one = FeedForward.of(2 * inward[None], torch.randn(1, D, 24), activation=RELU)
    rows = (directions[torch.arange(40) % 4] + 0.1 * torch.randn(40, D)) * 2
    layer, full = emerge(one, 4, 1), alone(one, rows)
    near = (layer(rows[None])[0][0] - full).norm()
    for shift in (1, 2, 3):
        wrong = Sparse(
            torch.ones(1, 40, 4), (layer.router(rows[None], Signal()).index + shift) % 4, torch.ones(1, 40, 1)
        )
        assert near < 0.5 * (layer.answer(rows[None], wrong)[0] - full).norm()


def test_clusters_are_balanced_and_find_what_was_planted():
    centres = F.normalize(torch.randn(5, 16), dim=-1)
    truth = torch.arange(5).repeat_interleave(8)
    vectors = (centres[truth] + 0.05 * torch.randn(40, 16)) * torch.rand(40, 1).add(0.5)
    found = clusters(vectors, 5)
    assert torch.bincount(found).tolist() == [8] * 5
    # Every planted bundle lies in one group.
    assert all(len(found[truth == each].unique()) == 1 for each in range(5))
    assert torch.equal(found, clusters(vectors, 5))


def tightness(vectors: Tensor, groups: Tensor) -> float:
    unit = F.normalize(vectors, dim=-1)
    return sum(float(unit[groups == g].sum(0).norm()) for g in groups.unique())


def test_clusters_of_noise_are_balanced_and_tighter_than_chance():
    vectors = torch.randn(48, 6)
    found = clusters(vectors, 6)
    assert torch.bincount(found).tolist() == [8] * 6
    chance = [tightness(vectors, (torch.arange(48) % 6)[torch.randperm(48)]) for _ in range(20)]
    assert tightness(vectors, found) > 1.3 * max(chance)
    assert clusters(vectors, 1).tolist() == [0] * 48
    assert sorted(clusters(vectors[:4], 4).tolist()) == [0, 1, 2, 3]
    assert torch.bincount(clusters(torch.zeros(6, 3), 3)).tolist() == [2, 2, 2]


def test_added_experts_change_nothing_for_the_old_task_and_serve_the_new_one():
    old = Mixture(ROUTERS["mixtral"](), network(experts=E), network(experts=1))
    fresh = ComposedRouter(Dot(D, E + 2), [Softmax()], partial(top_k, k=1), [renormalise])
    x, task = torch.randn(4, 7, D), torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        fresh.get_parameter("score.weight")[E + 1] = 9 * x[1, 0]
    before, (first,) = old(x)
    wide = extend(old, network(SWIGLU, experts=2), [fresh])
    after, (second,) = wide(x, Signal(task=task))
    torch.testing.assert_close(after[task == 0], before[task == 0])
    of_old = x[task == 0]
    assert torch.equal(wide(of_old, Signal(task=task[task == 0]))[0], old(of_old)[0])
    assert isinstance(first, Sparse)
    assert isinstance(second, Sparse)
    assert torch.equal(second.index[task == 0], first.index[task == 0])
    assert second.index[task == 1, :, 0].max() == E + 1
    assert (second.index[task == 1, :, 1] == NOBODY).all()
    alone_again, _ = extend(old, Identity(1))(x)
    assert torch.equal(alone_again, before)
    # A task that is not in the batch gives zero gradients, not missing ones.
    wide(x[task == 0], Signal(task=task[task == 0]))[0].sum().backward()
    weight = fresh.get_parameter("score.weight")
    assert weight.grad is not None
    assert not weight.grad.any()


def test_equal_experts_merge_exactly_and_the_mean_is_between():
    one, shared, x = network(), network(hidden=5, experts=2), torch.randn(2, 7, D)
    for always in (None, shared):
        layer = Mixture(ROUTERS["mixtral"](), upcycle(one, E), always)
        flat = alone(merge(layer), x.flatten(0, 1)).view(2, 7, D)
        torch.testing.assert_close(layer(x)[0], flat)
    half = Mixture(ComposedRouter(Dot(D, 2), [], partial(top_k, k=2), [unweighted]), upcycle(one, 2), shared)
    torch.testing.assert_close(half(x)[0], alone(merge(half, weight=2.0), x.flatten(0, 1)).view(2, 7, D))
    several = network(experts=3)
    mean = merge(Mixture(ROUTERS["mixtral"](), several), torch.tensor([0.0, 0.0, 5.0]))
    assert torch.equal(mean.inward[0], several.inward[2])
    scaled = Mixture(ROUTERS["mixtral"](), Scaled(upcycle(one, E), 0.3), shared)
    torch.testing.assert_close(scaled(x)[0], alone(merge(scaled), x.flatten(0, 1)).view(2, 7, D))
    plain = FeedForward(D, 3, 1, bias=False)
    mixed = Mixture(ROUTERS["mixtral"](), plain, network(experts=1))
    expected = alone(plain, x[0]) + alone(mixed.shared, x[0]) if mixed.shared else x[0]
    torch.testing.assert_close(alone(merge(mixed), x[0]), expected)


def test_kept_experts_answer_as_before_and_the_others_not_at_all():
    layer, x = Mixture(ROUTERS["mixtral"](), network(experts=E)), torch.randn(2, 7, D)
    _, (before,) = layer(x)
    less = keep(layer, (3, 1))
    answer, (after,) = less(x)
    assert isinstance(before, Sparse)
    assert isinstance(after, Sparse)
    assert torch.equal(after.counts, before.counts[[3, 1]])
    gone = (before.index == 0) | (before.index == 2)
    removed = Sparse(
        before.scores, before.index.masked_fill(gone, NOBODY), before.weight.masked_fill(gone, 0), before.origin
    )
    torch.testing.assert_close(answer, layer.answer(x, removed))
    torch.testing.assert_close(keep(layer, (2, 0, 3, 1))(x)[0], layer(x)[0])
    assert sum(p.numel() for p in less.experts.parameters()) * 2 == sum(p.numel() for p in layer.experts.parameters())


def test_pulling_keeps_the_sum_and_shrinks_the_distance():
    experts = network(experts=4)
    start = {name: p.detach().clone() for name, p in experts.named_parameters()}
    pull(experts, 0.3)
    for name, parameter in experts.named_parameters():
        others = (start[name].sum(0, keepdim=True) - start[name]) / 3
        torch.testing.assert_close(parameter.detach(), 0.7 * start[name] + 0.3 * others)
        torch.testing.assert_close(parameter.detach().sum(0), start[name].sum(0))
        ratio = (parameter - parameter.mean(0)).norm() / (start[name] - start[name].mean(0)).norm()
        assert ratio.detach().item() == pytest.approx(1 - 0.3 * 4 / 3, rel=1e-4)
    pull(experts, 0.75)
    for parameter in experts.parameters():
        torch.testing.assert_close(parameter, parameter[:1].expand_as(parameter))
    rows, mean = torch.randn(5, D), average(experts)
    torch.testing.assert_close(alone(mean, rows), alone(experts, rows, 2))


def test_selecting_and_averaging_is_for_every_stacked_kind():
    lora = randomised(LoRA(D, 2, 3))
    rows = torch.randn(5, D)
    torch.testing.assert_close(alone(select(lora, (2, 0)), rows, 0), alone(lora, rows, 2))
    assert select(lora, (1, 1, 1, 1)).costs == lora.costs[:1] * 4
    assert isinstance(average(lora), LoRA)
    copies = average(upcycle(network(), 3))
    assert copies.inward.shape == (1, 12, D)
    assert torch.equal(average(upcycle(one := network(), 7)).inward, one.inward)


def test_a_router_under_new_names_says_the_same():
    inner = ROUTERS["deepseek"]()
    router, x = Renamed(inner, (4, NOBODY, 0, 2), 5), torch.randn(2, 6, D)
    old, new = inner(x, signal(2, 6)), router(x, signal(2, 6))
    assert isinstance(old, Sparse)
    assert new.scores.shape == (2, 6, 5)
    table = torch.tensor([4, NOBODY, 0, 2])
    assert torch.equal(new.index, table[old.index])
    assert torch.equal(new.weight, old.weight.masked_fill(new.index == NOBODY, 0))
    assert not new.scores[..., [1, 3]].any()
    assert router.macs(3) == inner.macs(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upcycle(network(experts=2), 3), "is one expert; got 2"),
        (lambda: upcycle(network(), 0), "experts must be at least 1 .* got 0"),
        (lambda: clusters(torch.ones(7, 2), 2), "groups must divide the 7 units; got 2"),
        (
            lambda: split(network(), torch.zeros(12, dtype=torch.long).index_fill(0, torch.tensor([0]), 1), 1),
            "got size",
        ),
        (lambda: split(network(), torch.arange(12) % 3, 4), "and 4 choices"),
        (lambda: select(network(experts=3), (3,)), r"some of 0 to 2; got \(3,\)"),
        (lambda: average(network(experts=2), torch.tensor([0.0, 0.0])), "not negative and not all 0"),
        (lambda: pull(network(experts=4), 0.8), r"rate must lie in \[0, 0.75\] for 4 experts; got 0.8"),
        (lambda: pull(Joined([network(), LoRA(D, 2, 1)]), 0.1), "experts must be stacked.*got Joined"),
        (lambda: keep(Mixture(ROUTERS["mixtral"](), network(experts=4)), (1, 1)), "can be kept once"),
        (lambda: merge(Mixture(ROUTERS["mixtral"](), LoRA(D, 2, 4))), "feed-forward experts .* got LoRA"),
        (lambda: merge(Mixture(ROUTERS["mixtral"](), network(experts=4), network(RELU))), "one activation"),
        (lambda: Renamed(ROUTERS["mixtral"](), (0, 0, 1, 2), 4), "different ones of 0 to 3, or -1"),
        (lambda: Renamed(ROUTERS["soft"](), (0, 1, 2, 3), 4)(torch.ones(1, 2, D), Signal()), "got Soft over 4"),
        (lambda: ByTask([]), "a router for each task; got none"),
        (lambda: ByTask([ROUTERS["mixtral"]()])(torch.ones(1, 2, D), Signal()), r"in \[0, 1\); got None"),
        (
            lambda: ByTask([ROUTERS["mixtral"]()])(torch.ones(1, 2, D), Signal(task=torch.tensor([1]))),
            r"in \[0, 1\); got 1 to 1",
        ),
    ],
)
def test_errors_name_rule_value_and_repair(call, message):
    with pytest.raises(ValueError, match=message):
        call()
