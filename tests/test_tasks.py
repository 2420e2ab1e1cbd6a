"""One trunk for several tasks: who is told what, how they are learnt, and what surgery does to the modules."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nestor.experts.feedforward import FeedForward
from nestor.experts.linear import Linear
from nestor.experts.partly import PartlyShared
from nestor.layers.answers import OfClassToken, OfMean, OfPixels
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.layers.queries import QueryMixture, first_head
from nestor.layers.token_order import error_of_order, token_by_token
from nestor.measure.neighbours import purity, purity_of_tasks
from nestor.measure.task_traffic import apart, told, traced, usage
from nestor.models.composed import stack
from nestor.models.tasked import (
    Tasked,
    every_second,
    for_canvases,
    gated_by_task,
    gated_knowing_task,
    grey_patches,
    modular_block,
    modular_router,
    partly_by_task,
)
from nestor.routing.adjust import Softmax
from nestor.routing.choose import soft, top_k
from nestor.routing.given import Given
from nestor.routing.learned import Dot, Slots
from nestor.routing.refine import drop
from nestor.routing.router import ComposedRouter
from nestor.surgery.fixed_point import fixed_point
from nestor.surgery.modules import alike, cut, extended, used
from nestor.training.beside import Contrast, Informed, Level, contrastive
from nestor.training.settings import Fit
from nestor.training.tasks import OneAtATime, Task, learn, note, scores, together
from nestor.types import NOBODY, Signal, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

D = 8


def fresh() -> Tasked:
    """With routers of zeros."""
    blocks = [modular_block(D, tasks=2, experts=4, choices=2) for _ in range(2)]
    return Tasked(grey_patches(D, 8, 4), blocks, [OfMean(D, 3), OfPixels(D, 4, 1)]).eval()


def modular() -> Tasked:
    model = fresh()
    for name, parameter in model.named_parameters():
        if "router" in name:
            nn.init.normal_(parameter)
    return model


def canvases() -> Tasked:
    mixture = partial(gated_by_task, D, D, tasks=4, experts=4, choices=2)
    return for_canvases(D, 8, every_second(2, D, mixture), patch=4)


def tasks(count: int = 24) -> list[Task]:
    """Which third is bright, and where a picture is bright."""
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 8, 8) * 0.2
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 3 * label : 3 * label + 2] += 1

    def right(logits: torch.Tensor, wanted: torch.Tensor) -> float:
        return float((logits.argmax(-1) == wanted).double().mean())

    def near(values: torch.Tensor, wanted: torch.Tensor) -> float:
        return -float((values - wanted).square().mean())

    return [
        Task(name="place", head=0, images=images, targets=labels, loss=F.cross_entropy, score=right),
        Task(name="copy", head=1, images=images, targets=images, loss=F.mse_loss, score=near),
    ]


def test_pixels_of_a_head_lie_where_the_patches_lay():
    head, embed = OfPixels(16, 4, 1), grey_patches(16, 8, 4)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(16))
        head.linear.bias.zero_()
        embed.weight.copy_(torch.eye(16))
        embed.position.zero_()
    images = torch.randn(2, 1, 8, 12)
    torch.testing.assert_close(head(embed(images), (2, 3)), images)
    assert head.macs(6) == 6 * 256
    assert OfMean(4, 3, prefix=1)(torch.randn(2, 5, 4), (2, 2)).shape == (2, 3)
    assert OfClassToken(4, 6, 2).macs(9) == 24 + 36 + 12
    assert OfClassToken(4, 6, 2)(torch.randn(3, 5, 4), (2, 2)).shape == (3, 2)


def by_hand(layer: QueryMixture, tokens: torch.Tensor, routing: Sparse) -> torch.Tensor:
    key, value = layer.memory(tokens).chunk(2, -1)
    queries, outputs = (part.get_parameter("weight") for part in (layer.queries, layer.outputs))
    answer = torch.zeros_like(tokens)
    for b, t in torch.cartesian_prod(*map(torch.arange, tokens.shape[:2])).tolist():
        for expert, weight in zip(routing.index[b, t].tolist(), routing.weight[b, t], strict=True):
            if expert != NOBODY:
                scores = key[b] @ (queries[expert] @ tokens[b, t]) / key.shape[-1] ** 0.5
                answer[b, t] = answer[b, t] + weight * (outputs[expert] @ (scores.softmax(0) @ value[b]))
    return answer


@pytest.mark.parametrize("refinements", [[], [partial(drop, factor=0.5)]])
def test_heads_that_are_experts_equal_token_by_token(refinements):
    router = ComposedRouter(Dot(D, 4), [Softmax()], partial(top_k, k=2), refinements)
    layer = QueryMixture(D, router, Linear(D, 4, out=6), Linear(6, 4, out=D), size=6)
    tokens, toward = torch.randn(2, 5, D), torch.randn(2, 5, D)
    answer, (routing,) = layer(tokens, Signal())
    assert isinstance(routing, Sparse)
    naive = by_hand(layer, tokens, routing)
    torch.testing.assert_close(answer, naive)
    (answer * toward).sum().backward(retain_graph=True)
    ours = [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]
    layer.zero_grad()
    (naive * toward).sum().backward()
    for mine, parameter in zip(ours, layer.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)
    served = int(routing.counts.sum())
    assert layer.macs(routing, (2, 5, D)) == 2 * 5 * 32 + 10 * D * 12 + served * (96 + 5 * 12)
    one = torch.zeros(2, 5, 1, dtype=torch.long)
    first = Sparse(torch.ones(2, 5, 4), one, torch.ones(2, 5, 1))
    torch.testing.assert_close(first_head(layer, tokens), by_hand(layer, tokens, first))


def test_equal_modules_are_the_dense_layer_times_the_sum_of_their_gates():
    block = alike(modular_block(D, tasks=1, experts=4, choices=4)).eval()
    tokens, signal = torch.randn(2, 5, D), Signal(task=torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(block.attention(tokens, signal)[0], (1 + 4e-4) * first_head(block.attention, tokens))
    assert all(torch.equal(parameter[0], parameter[3]) for parameter in block.layer.experts.parameters())


def test_every_task_has_its_router_and_its_head():
    model, images = canvases().eval(), torch.randn(3, 1, 8, 8)
    assert model(images, 0).logits.shape == (3, 10)
    assert model(images, 3).logits.shape == (3, 2, 8, 8)
    assert len(model.mixtures) == len(model.feedforwards) == 1
    one, two = model(images, 0).routings[0], model(images, 1).routings[0]
    assert not torch.equal(one.scores, two.scores)
    assert torch.equal(model(images, 1, told=0).routings[0].scores, one.scores)
    with pytest.raises(ValueError, match=r"tasks must lie in \[0, 4\); got 4"):
        model(images, 4)
    each = 4 * (4 * D * D) + 2 * 16 * D
    experts, network = 4 * 2 * 2 * D * D, 4 * 8 * D * D
    assert model.macs(model(images, 0), 4, [0]) == 4 * 16 * D + 10 * D + 2 * each + experts + 4 * 4 * D + network
    knowing = gated_knowing_task(D, D, tasks=2, experts=4, choices=2).eval()
    tokens = torch.randn(1, 5, D)
    knowing.router.get_parameter("score.parts.1.bias").data[1] = torch.tensor([0.0, 0, 0, 9])
    _, (routing,) = knowing(tokens, Signal(task=torch.tensor([1])))
    assert isinstance(routing, Sparse)
    assert (routing.index[..., 0] == 3).all()


def test_partly_shared_experts_are_the_network_and_others_do_not_learn():
    one, tokens = FeedForward(D, 12, 1), torch.randn(4, 5, D)
    assert one.outward_bias is not None
    nn.init.normal_(one.outward_bias)
    layer = partly_by_task(D, 12, tasks=2, own=2)
    layer.experts = PartlyShared.of(one, 2, own=2)
    signal = Signal(task=torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(layer(tokens, signal)[0], Dense(one)(tokens)[0])
    layer(tokens, Signal(task=torch.zeros(4, dtype=torch.long)))[0].sum().backward()
    own = layer.experts.get_parameter("own").grad
    assert own is not None
    assert not own[1].any()
    assert own[0].any()
    with torch.no_grad():
        layer.experts.get_parameter("own")[1] += 1
    changed = layer(tokens, signal)[0] - Dense(one)(tokens)[0]
    assert not changed[[0, 3]].abs().max() > 1e-6
    assert not changed[[1, 2], :, :6].abs().max() > 1e-6
    assert layer.experts.costs == (2 * 12 * D,) * 2
    for call, message in (
        (lambda: PartlyShared(D, 4, 2, own=D), r"own must lie in \[1, 8\); got 8"),
        (lambda: PartlyShared.of(FeedForward(D, 4, 2), 2, own=1), "can be split; got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_token_by_token_is_expert_by_expert():
    layer = gated_by_task(D, D, tasks=2, experts=4, choices=2).eval()
    assert error_of_order(layer, torch.randn(2, 5, D), Signal(task=torch.tensor([0, 1]))) < 1e-6
    tokens = torch.randn(1, 3, D)
    nobody = Sparse(torch.ones(1, 3, 4), torch.full((1, 3, 2), NOBODY), torch.zeros(1, 3, 2))
    assert not token_by_token(layer, tokens, nobody).any()
    slots = ComposedRouter(Slots(D, 4, slots=1), [], partial(soft, slots=1))
    with pytest.raises(ValueError, match="only sparse decisions have an order"):
        error_of_order(Mixture(slots, FeedForward(D, D, 4)), tokens, Signal())


def test_the_loop_learns_all_tasks_and_the_same_twice():
    model, each, how = modular(), tasks(), Fit(steps=20, batch=8, rate=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = learn(model, each, how, beside=Level(deviation=0.25))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    first, last = scores(model, each), scores(trained, each)
    assert last["place"] > first["place"]
    assert last["copy"] > first["copy"]
    assert scores(trained, each, told=lambda task: 1 - task.head) != last
    few, again = (learn(model, each, Fit(steps=2, batch=8), only=["heads."]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(few.parameters(), again.parameters(), strict=True))
    for name, tensor in few.state_dict().items():
        assert torch.equal(before[name], tensor) != name.startswith("heads.")
    assert all(parameter.requires_grad for parameter in few.parameters())
    for call, message in (
        (lambda: learn(model, tasks(), Fit(batch=8)), "their steps; got 2 tasks and None"),
        (lambda: learn(model, tasks(4), Fit(steps=1, batch=8)), "a batch of 8 pictures.*got place, copy"),
        (lambda: learn(model, tasks(), Fit(steps=1, batch=8), only=["nothing"]), "must have parameters that do"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_loss_that_is_no_number_stops_the_loop():
    def broken(model, seen):
        return seen[0].output.logits.sum() * torch.inf

    with pytest.raises(FloatingPointError, match="step 1 gave a loss of"):
        learn(modular(), tasks(), Fit(steps=2, batch=8), beside=broken)


def test_one_task_at_a_time_is_drawn_by_the_root_of_its_size():
    large, small = tasks(36)[0], tasks(9)[1]
    draw = OneAtATime(seed=1)
    drawn = [draw([large, small], step)[0].name for step in range(600)]
    assert abs(drawn.count("place") / 600 - 2 / 3) < 0.06
    assert drawn == [draw([large, small], step)[0].name for step in range(600)]
    assert together([large, small], 3) == [large, small]
    found: dict = {}
    for value in (1.0, 2.0):
        note(found, "a", {"b": value})
    assert found == {"a": {"b": [1.0, 2.0]}}


def test_the_information_loss_makes_tasks_claim_experts_and_remembers_the_others():
    torch.manual_seed(1)
    model, each = fresh(), tasks()
    how = Fit(steps=50, batch=8, rate=0.1)
    images = [task.images for task in each]
    loss = Informed(2, weight=1.0)
    trained = learn(model, each, how, beside=loss, draw=OneAtATime())
    # Two tasks can tell log 2 in each of four layers.
    assert sum(told(trained, images).values()) > 1.5
    assert len(loss.means) == 4
    for mean in loss.means:
        torch.testing.assert_close(mean.sum(-1), torch.ones(2))
    within = apart(trained, images[0], (0, 1))
    assert within[0] > within[1]
    for call, message in (
        (lambda: Informed(2, keep=1.0), r"keep must lie in \[0, 1\)"),
        (lambda: apart(trained, images[0], (0,)), "two tasks and two pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_items_of_a_kind_are_drawn_together():
    kinds = torch.tensor([0, 0, 1, 1, 2])
    near = F.one_hot(kinds, 3).float()
    far = torch.eye(5)
    assert contrastive(near, kinds, 0.1) < contrastive(far, kinds, 0.1)
    # Each of the four has one of its kind among four equal others; the last is alone and does not count.
    torch.testing.assert_close(contrastive(torch.ones(5, 2), kinds, 0.5), torch.tensor(4.0).log())
    assert contrastive(far, torch.arange(5), 0.1) == 0
    model = Tasked(grey_patches(D, 8, 4, prefix=1), stack(D, 2, every_second(1, D, None)), [OfClassToken(D, 6, 4)] * 3)
    loss = Contrast(head=2, kinds={0: torch.arange(24) % 3, 1: torch.arange(24) % 3 + 3})
    seen = [
        type("Each", (), {"task": t, "rows": torch.arange(6), "output": model(t.images[:6], t.head)}) for t in tasks()
    ]
    value = loss(model, seen)  # pyright: ignore[reportArgumentType]
    value.backward()
    assert float(value.detach()) > 0
    assert model.embed.prefix.grad is not None
    assert 0 <= purity_of_tasks(model.eval(), [t.images for t in tasks()], [torch.arange(24)] * 2, nearest=2) <= 1
    with pytest.raises(ValueError, match="temperature must be positive; got 0"):
        contrastive(near, kinds, 0)


def test_purity_is_the_share_of_neighbours_of_ones_kind():
    values = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    assert purity(values, torch.tensor([0, 0, 1, 1]), nearest=1) == 1
    assert purity(values, torch.tensor([0, 1, 0, 1]), nearest=1) == 0
    with pytest.raises(ValueError, match="more items than neighbours; got 4 items"):
        purity(values, torch.arange(4), nearest=4)


@torch.no_grad()
def test_a_new_task_changes_nothing_of_the_old_ones():
    model, images = modular(), torch.randn(3, 1, 8, 8)
    for more in (0, 3):
        wider = extended(model, OfMean(D, 5), lambda first, experts: modular_router(D, experts, 2), more=more).eval()
        for task in (0, 1):
            assert torch.equal(wider(images, task).logits, model(images, task).logits)
        assert wider(images, 2).logits.shape == (3, 5)
        assert all(len(shares) == 4 + more for shares in usage(wider, images, 2))
        learning = [name for name, parameter in wider.named_parameters() if parameter.requires_grad]
        assert any(name.startswith("heads.2.") for name in learning)
        assert not [name for name in learning if "memory" in name or "embed" in name or ".routers.0." in name]
        assert bool([name for name in learning if ".parts.1." in name]) == bool(more)
    with pytest.raises(ValueError, match="a router for each task; got ComposedRouter"):
        extended(
            Tasked(grey_patches(D, 8, 4), stack(D, 2, [partly_by_task(D, 4, tasks=2, own=2)]), []),
            OfMean(D, 1),
            lambda first, experts: first,
        )


@torch.no_grad()
def test_modules_that_nobody_uses_can_be_cut():
    model, images = modular(), torch.randn(3, 1, 8, 8)
    for part in model.mixtures:
        for router in part.router.get_submodule("routers").children():
            # Of large tokens along the first channel only two experts can be best; one of them is always chosen.
            assert isinstance(router, ComposedRouter)
            router.adjustments.append(_Never((1, 2)))
    shares = usage(model, images, 0)
    kept = used(shares, 0.01)
    assert kept == [[0, 3]] * 4
    less = cut(model, kept)
    torch.testing.assert_close(less(images, 0).logits, model(images, 0).logits)
    assert sum(p.numel() for p in less.parameters()) < sum(p.numel() for p in model.parameters())
    assert not torch.allclose(cut(model, [[0]] * 4)(images, 0).logits, model(images, 0).logits)
    assert used([torch.tensor([0.0, 0.0, 1e-3])], 0.5) == [[2]]
    for kept, message in (([[0]], "got 1 of 4 lists"), ([[0, 0]] * 4, "kept once")):
        with pytest.raises(ValueError, match=message):
            cut(model, kept)


class _Never(nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.experts = list(experts)

    def forward(self, proposal, signal):
        preference = proposal.preference.clone()
        preference[..., self.experts] = -torch.inf
        return type(proposal)(scores=proposal.scores, preference=preference, noisy=proposal.noisy)


def test_queries_say_what_they_need():
    router = ComposedRouter(Given(2), [Softmax()], partial(top_k, k=1))
    layer, tokens = QueryMixture(D, router, Linear(D, 3), Linear(D, 3), size=D), torch.randn(2, 5, D)
    with pytest.raises(ValueError, match="a sparse decision over 3 experts; got Sparse over 2"):
        layer(tokens, Signal(task=torch.zeros(2, dtype=torch.long)))
    with pytest.raises(ValueError, match="know no padding; got a mask"):
        layer(tokens, Signal(mask=torch.ones(2, 5, dtype=torch.bool)))
    with pytest.raises(ValueError, match="got 2 queries and 3 outputs"):
        QueryMixture(D, router, Linear(D, 2), Linear(D, 3), size=D)


def test_decisions_about_tasks_survive_a_file(tmp_path):
    model, images = canvases().eval(), torch.randn(3, 1, 8, 8)
    kept, plain = traced(model, images, range(4), tmp_path / "new"), traced(model, images, range(4))
    assert [len(layers) for layers in kept] == [1] * 4
    assert all(torch.equal(a[0].index, b[0].index) for a, b in zip(kept, plain, strict=True))


@torch.no_grad()
def test_a_network_in_fixed_point_answers_nearly_the_same():
    model, images = canvases().eval(), torch.randn(3, 1, 8, 8)
    rounded = fixed_point(model)
    for task in range(4):
        torch.testing.assert_close(rounded(images, task).logits, model(images, task).logits, rtol=0, atol=2e-3)
    weight = rounded.embed.weight * 2**14
    assert torch.equal(weight, weight.round())
    assert not torch.equal(model.embed.weight, rounded.embed.weight)
    assert rounded.macs(rounded(images, 0), 4, [0]) == model.macs(model(images, 0), 4, [0])
    with pytest.raises(ValueError, match="only blocks whose attention is not a mixture"):
        fixed_point(modular())
