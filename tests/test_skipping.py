"""Skipping tokens, layers side by side, aims of training and contests: by hand and by parity."""

from functools import partial
from typing import Any

import pytest
import torch
from tiny_pictures import shapes as pictures_of
from torch.nn import functional as F

from nestor.experts.cheap import Identity, Zero
from nestor.experts.feedforward import FeedForward
from nestor.experts.joined import Joined
from nestor.experts.lowrank import Bottleneck
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.layers.together import Blended, Together, dense, spent
from nestor.measure.points import apart, over_cost
from nestor.models.composed import Composed, ComposedSettings, stack
from nestor.routing import losses
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.given import Pooled
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.routing.score import Linear, Uniform
from nestor.routing.straight import Gumbel, StraightThrough
from nestor.surgery.freeze import learning, only
from nestor.training.aims import Priced, Skipping, kept_share, pursue
from nestor.training.contest import Entry, contest
from nestor.training.settings import Fit
from nestor.types import Signal, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

D, H = 8, 6
FRAME = ComposedSettings(width=D, patch=4, grid=(4, 4), classes=2, labels=("c0", "c1"), prefix=1, head="class_mean")


def skipper(score=None) -> Mixture:
    return Mixture(StraightThrough(score or Dot(D, 2), temperature=5.0), Joined([FeedForward(D, H, 1), Zero()]))


def first_of(layer: torch.nn.Module) -> Any:
    return layer.get_submodule("experts.parts.0")


def sparse(routing) -> Sparse:
    assert isinstance(routing, Sparse)
    return routing


def net(layer=None) -> Composed:
    def one():
        return Together([(layer or skipper)(), Dense(Bottleneck(D, 3, 1, scale=0.1))])

    return Composed(FRAME, stack(D, 2, [one(), one()]))  # pyright: ignore[reportArgumentType]


def test_while_training_all_answer_and_the_softmax_learns():
    router, tokens = StraightThrough(Dot(D, 3)), torch.randn(2, 50, D)
    routing = router(tokens, Signal())
    assert routing.index.shape == (2, 50, 3)
    assert torch.equal(routing.weight.detach().sum(-1), torch.ones(2, 50))
    assert set(routing.weight.detach().flatten().tolist()) == {0.0, 1.0}
    toward = torch.randn(2, 50, 3)
    (routing.weight * toward).sum().backward()
    ours = router.get_parameter("free.score.weight").grad
    again = torch.nn.Parameter(router.get_parameter("free.score.weight").detach().clone())
    assert routing.origin is not None
    noise = (routing.origin.noisy - routing.origin.logits).detach()
    ((F.linear(tokens, again) + noise).softmax(-1) * toward).sum().backward()
    torch.testing.assert_close(ours, again.grad)
    tested = router.eval()(tokens, Signal())
    assert tested.index.shape == (2, 50, 1)
    assert torch.equal(tested.index[..., 0], F.linear(tokens, again).argmax(-1))
    assert torch.equal(tested.weight, torch.ones(2, 50, 1))


def test_noise_draws_experts_from_the_softmax_of_the_logits():
    torch.manual_seed(0)
    router = StraightThrough(Linear(D, 2), temperature=5.0)
    with torch.no_grad():
        router.get_parameter("free.score.bias").copy_(torch.tensor([1.0, 0.0]))
    drawn = router(torch.randn(8, 2000, D), Signal())
    assert float(drawn.weight.detach()[..., 0].mean()) == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.015)


def test_tokens_before_the_grid_are_never_skipped_and_counts_are_exact():
    tokens, signal = torch.randn(3, 11, D), Signal(grid=(2, 4))
    router = StraightThrough(Linear(D, 2))
    with torch.no_grad():
        router.get_parameter("free.score.bias").copy_(torch.tensor([-9.0, 9.0]))
    for training in (True, False):
        weight = dense(sparse(router.train(training)(tokens, signal)))[..., 0].detach()
        assert weight.tolist() == [[1.0] * 3 + [0.0] * 8] * 3
        exact = router(tokens, Signal(grid=(2, 4), counts=(5, 6)))
        assert (exact.index[..., 0] == 0).sum(1).tolist() == [5] * 3
        assert not exact.index[:, :3].any()
    with pytest.raises(ValueError, match=r"the grid must fit the tokens; got \(4, 4\) for 11"):
        router(tokens, Signal(grid=(4, 4)))
    with pytest.raises(ValueError, match="a temperature must be positive; got 0"):
        Gumbel(0)


def test_what_is_skipped_is_multiplied_by_zero_while_training_and_left_out_afterwards():
    layer, tokens = skipper().eval(), torch.randn(2, 9, D)
    answer, (routing,) = layer(tokens)
    whole = Dense(first_of(layer))(tokens)[0]
    torch.testing.assert_close(answer, whole * (routing.index == 0))
    assert layer.macs(routing, (2, 9, D)) == 2 * 9 * 2 * D + int(routing.counts[0]) * 2 * H * D


def test_layers_together_add_their_answers_and_costs():
    first, second, tokens = skipper().eval(), Dense(FeedForward(D, 3, 1)), torch.randn(2, 5, D)
    both = Together([first, second])
    answer, routings = both(tokens)
    torch.testing.assert_close(answer, first(tokens)[0] + second(tokens)[0])
    assert spent(both, iter(routings), (2, 5, D)) == first.macs(routings[0], (2, 5, D)) + 2 * second.macs(5)
    with pytest.raises(ValueError, match="there must be layers"):
        Together([])


def test_blended_adapters_are_one_adapter_for_each_item():
    adapters = Bottleneck(D, 3, 4, scale=0.3)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    layer = Blended(adapters, ComposedRouter(Pooled(Dot(D, 4)), [Softmax()], partial(top_k, k=4)))
    tokens, mask = torch.randn(2, 5, D), torch.tensor([[False, True, True, True, True], [True] * 5])
    answer, (routing,) = layer(tokens, Signal(mask=mask))
    for item in range(2):
        gate = sparse(routing).scores[item, 1]
        one = Bottleneck(D, 3, 1, scale=0.3)
        mixed = {name: torch.einsum("e,e...->...", gate, part)[None] for name, part in adapters.named_parameters()}
        one.load_state_dict(mixed)
        # A masked token neither takes part in the mean nor gets an answer.
        expected = one(tokens[item], torch.tensor([5])) * mask[item].unsqueeze(-1)
        torch.testing.assert_close(answer[item], expected)
    answer.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    assert layer.macs(routing, (2, 5, D)) == 2 * (4 * D + 4 * 6 * D + 5 * 6 * D)
    with pytest.raises(ValueError, match="a sparse decision over 4 experts; got Sparse over 3"):
        Blended(adapters, ComposedRouter(Dot(D, 3), [Softmax()], partial(top_k, k=3)))(tokens)


def test_a_network_told_to_skip_nothing_is_the_dense_one():
    model, images = net().eval(), torch.randn(3, 3, 16, 16)
    plain = Composed(
        FRAME, stack(D, 2, [Dense(first_of(block.get_submodule("layer.parts.0"))) for block in model.chain])
    )
    plain.load_state_dict({n: p for n, p in model.state_dict().items() if n in plain.state_dict()}, strict=False)
    whole = model.told(images, Signal(counts=(17, 0)))
    assert apart(whole.tokens, plain(images).tokens) < 1e-5
    assert kept_share(whole).item() == 1
    assert model.macs(whole, 3, 16) == plain.macs(plain(images), 3, 16) + 2 * 17 * (2 * D + 6 * D)
    with pytest.raises(ValueError, match="needs a decision between two experts"):
        kept_share(plain(images))


def test_skipping_is_learned_towards_its_rate():
    torch.manual_seed(0)
    how = Fit(epochs=30, batch=12, rate=0.3, router_rate=3.0)
    trained = pursue(net(partial(skipper, Linear(D, 2))), pictures_of(), how, Skipping(rate=0.8, weight=50.0), 0)
    images = torch.stack([pictures_of()[i][0] for i in range(12)])
    with torch.no_grad():
        assert float(kept_share(trained.train()(images))) == pytest.approx(0.8, abs=0.15)
    with pytest.raises(ValueError, match=r"a rate must lie in \[0, 1\]"):
        Skipping(rate=2)


def test_only_what_is_named_learns():
    model = only(net(), ("head.*", "*.router.*"))
    named = {name for name, p in model.named_parameters() if p.requires_grad}
    assert named == {n for n, _ in model.named_parameters() if n.startswith("head") or ".router." in n}
    assert learning(model) == 2 * (2 * D + 1) + 2 * 2 * D
    before = {n: p.clone() for n, p in model.named_parameters()}
    after = dict(pursue(model, pictures_of(), Fit(epochs=1, batch=4, rate=0.1), Skipping(), 0).named_parameters())
    assert {n for n in before if not torch.equal(before[n], after[n])} == named
    with pytest.raises(ValueError, match=r"every pattern must name a parameter; got 'tail'"):
        only(net(), "tail")


def test_a_contest_scores_prices_and_reads_all_entries():
    aim = Priced(losses=((0.5, losses.switch), (0.5, partial(losses.importance, costs=(3, 1)))))
    entries = {
        "dense": Entry(build=lambda: net(lambda: Dense(FeedForward(D, H, 1)))),
        "chance": Entry(build=lambda: net(partial(skipper, Uniform(2))), read={"kept": kept_share}),
        "learned": Entry(build=net, aim=aim),
    }
    found = contest(entries, pictures_of(), pictures_of(seed=3), Fit(epochs=1, batch=4), (0, 1))
    assert {name: len(values) for name, values in found["accuracy"].items()} == dict.fromkeys(entries, 2)
    assert found["cost"]["dense"] == 1
    assert 0.3 < found["cost"]["chance"] < 1
    assert list(found["kept"]) == ["chance"]
    drawn = over_cost(found, level="dense")
    assert drawn is not None
    assert list(drawn.lines) == ["chance", "learned"]
    assert drawn.lines["chance"] == {found["cost"]["chance"]: found["accuracy"]["chance"]}
    assert over_cost({}) is None


def test_identity_stays_identity_under_all_or_nothing():
    tokens = torch.randn(2, 7, D)
    torch.testing.assert_close(Mixture(StraightThrough(Dot(D, 4)), Identity(4))(tokens)[0], tokens)
