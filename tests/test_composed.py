"""Networks composed of blocks: pretrained weights, shared parts, and the loop that trains them."""

from functools import partial

import pytest
import torch
from plain_vit import plain_forward, relative
from tiny_pictures import shapes as pictures_of
from torch.nn import functional as F

from nestor.experts.feedforward import FeedForward
from nestor.experts.stacked import pull
from nestor.layers.block import Block, Dense, SelfAttention
from nestor.layers.mixture import Mixture
from nestor.measure.confusion import confusion, groups
from nestor.models.composed import Composed, ComposedSettings, stack, tiny
from nestor.models.composed_plain import composed
from nestor.models.plain import Plain, PlainSettings, shapes
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.fixed import Again, Shuffled
from nestor.routing.given import Pooled
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.surgery.grow import fill, upcycle
from nestor.training.balance import Balance, Guide, balance
from nestor.training.compare import Rival, compare, means, right, train
from nestor.training.settings import Fit
from nestor.types import Signal, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

D = 8
FRAME = ComposedSettings(width=D, patch=4, grid=(4, 4), classes=2, labels=("c0", "c1"))


def router(experts: int = 4) -> ComposedRouter:
    return ComposedRouter(Pooled(Dot(D, experts)), [Softmax()], partial(top_k, k=1))


def mixed(after=None) -> Composed:
    layers = [
        Dense(FeedForward(D, 6, 1)),
        Mixture(router(), FeedForward(D, 6, 4)),
        Mixture(Again(), FeedForward(D, 6, 4)),
    ]
    return Composed(FRAME, stack(D, 2, layers), after)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "swiglu"])
@pytest.mark.parametrize("scale", [True, False])
def test_pretrained_weights_give_what_they_gave(activation: str, scale: bool):
    settings = PlainSettings(
        width=12,
        depth=3,
        heads=3,
        hidden=16,
        patch=4,
        grid=(3, 3),
        prefix=2,
        activation=activation,
        eps=1e-6,
        interpolation="bicubic",
        classes=0,
        labels=(),
        head="class",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        source="test",
    )
    tensors = {name: torch.randn(size) * 0.3 for name, size in shapes(settings, embed_norm=False, scale=scale).items()}
    plain, images = Plain(settings=settings, tensors=tensors), torch.randn(2, 3, 16, 12)
    model = composed(plain, ("a", "b", "c"))
    assert relative(model(images).tokens, plain_forward(plain, images)[0]) < 1e-5
    assert model(images).logits.shape == (2, 3)
    copies = composed(
        plain, ("a",), lambda _, one: Mixture(ComposedRouter(Dot(12, 1), [Softmax()], partial(top_k, k=1)), one)
    )
    assert relative(copies(images).tokens, model(images).tokens) < 1e-5
    assert len(composed(plain, ("a",), depth=1).chain) == 1
    for odd, message in ((0, "and 0 blocks"), (4, "and 4 blocks")):
        with pytest.raises(ValueError, match=message):
            composed(plain, ("a",), depth=odd)


def test_attention_is_that_of_torch():
    ours, theirs = SelfAttention(D, 2), torch.nn.MultiheadAttention(D, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.inward.weight,
            "in_proj_bias": ours.inward.bias,
            "out_proj.weight": ours.outward.weight,
            "out_proj.bias": ours.outward.bias,
        }
    )
    tokens = torch.randn(2, 5, D)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens, need_weights=False)[0])
    assert ours.macs(5) == 4 * 5 * D * D + 2 * 25 * D


def test_decisions_are_returned_and_may_be_repeated_by_later_layers():
    model, images = mixed(), torch.randn(3, 3, 16, 16)
    output = model(images)
    first, second = output.routings
    assert first is second
    assert len(model.mixtures) == 2
    assert output.tokens.shape == (3, 16, D)
    with pytest.raises(ValueError, match=r"only with Signal\(routing=\.\.\.\); got None"):
        Again()(torch.randn(1, 2, D), Signal())
    # Embedding, head, three times attention and a network, and one mean token through the router.
    each = 16 * (4 * D * D + 2 * 6 * D) + 2 * 16 * 16 * D
    assert model.macs(output, 3, 16) == 16 * 48 * D + 2 * D + 3 * each + 4 * D


def test_a_shared_block_is_counted_once():
    block = Block(D, SelfAttention(D, 2), Mixture(router(), FeedForward(D, 6, 4)))
    model = tiny(D, [block] * 3)
    assert len(model.chain) == 3
    assert len(model.mixtures) == 1
    assert len(model(torch.randn(1, 3, 28, 28)).routings) == 3
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in tiny(D, [block]).parameters())


def test_a_network_filled_with_a_dense_one_is_it_up_to_the_gate():
    model, images = mixed(), torch.randn(3, 3, 16, 16)
    dense = Composed(FRAME, stack(D, 2, [Dense(FeedForward(D, 6, 1)) for _ in range(3)]))
    torch.nn.init.normal_(dense.head.weight)
    filled = fill(model, dense)
    for layer in filled.mixtures[:1]:
        assert isinstance(layer.router, ComposedRouter)
        layer.router.refinements = (
            lambda routing: Sparse(routing.scores, routing.index, torch.ones(routing.index.shape)),
        )
    torch.testing.assert_close(filled(images).logits, dense(images).logits)
    assert not torch.equal(model(images).tokens, dense(images).tokens)
    with pytest.raises(ValueError, match="must have the same blocks, heads and frame"):
        fill(dense, model)
    other = Composed(FRAME, stack(D, 1, [Dense(FeedForward(D, 6, 1)) for _ in range(3)]))
    with pytest.raises(ValueError, match="must have the same blocks, heads and frame"):
        fill(model, other)


def test_the_loop_trains_balances_and_does_what_comes_after_a_step():
    seen = []

    def after(model: torch.nn.Module, progress: float) -> None:
        assert isinstance(model, Composed)
        pull(model.mixtures[0].experts, 0.75)
        seen.append(progress)

    rival = Rival(build=lambda: mixed(after), balance=(Balance(weight=0.1), Guide(groups=(0, 3))))
    how = Fit(epochs=2, batch=4, rate=0.03)
    trained = train(rival, pictures_of(), how, seed=1)
    assert seen == pytest.approx([(step + 1) / 6 for step in range(6)])
    for experts, same in zip((layer.experts for layer in trained.mixtures), (True, False), strict=True):
        weight = experts.get_parameter("inward")
        assert torch.allclose(weight, weight[:1], atol=1e-6) == same
    again = train(rival, pictures_of(), how, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    assert 0 <= right(trained, pictures_of(seed=3)) <= 1


def test_rivals_are_compared_over_seeds_and_so_is_what_is_made_of_them():
    rivals = {"ours": Rival(build=mixed, convert={"ours, twice": lambda model: model}), "theirs": Rival(build=mixed)}
    found = compare(rivals, pictures_of(), pictures_of(seed=3), Fit(epochs=1, batch=4), (0, 1))
    assert list(found) == ["ours", "ours, twice", "theirs"]
    assert found["ours"] == found["ours, twice"] == found["theirs"]
    assert means(found)["ours"] == pytest.approx(sum(found["ours"]) / 2)


def test_a_guide_is_the_cross_entropy_of_the_logits():
    tokens, labels = torch.randn(3, 5, D), torch.tensor([1, 0, 1])
    routing = router()(tokens, Signal())
    assert isinstance(routing, Sparse)
    assert routing.origin is not None
    expected = F.cross_entropy(routing.origin.logits[:, 0], torch.tensor([2, 3, 2]))
    torch.testing.assert_close(balance([Guide(groups=(3, 2), weight=2.0)], [routing], labels=labels), 2 * expected)
    mask = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    kept = F.cross_entropy(routing.origin.logits[[0, 2], 0], torch.tensor([2, 2]))
    torch.testing.assert_close(balance([Guide(groups=(3, 2), weight=1.0)], [routing], mask, labels), kept)
    for guide, given, message in (
        (Guide(groups=(0, 1)), None, "needs labels of its 2 classes .* got none"),
        (Guide(groups=(0,)), labels, "needs labels of its 1 classes .* got 2"),
        (Guide(groups=(0, 4)), labels, "must lie below 4; got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            balance([guide], [routing], labels=given)
    with pytest.raises(ValueError, match="an expert for each class and a positive weight"):
        Guide(groups=())


def test_shuffled_tokens_are_dealt_evenly_and_anew():
    layer, tokens = Shuffled(4), torch.randn(3, 7, D)
    first, second = layer(tokens, Signal()), layer(tokens, Signal())
    assert sorted(first.counts.tolist()) == [5, 5, 5, 6]
    assert not torch.equal(first.index, second.index)
    dense = FeedForward(D, 6, 1)
    answer, _ = Mixture(layer, upcycle(dense, 4))(tokens)
    torch.testing.assert_close(answer, Dense(dense)(tokens)[0])
    assert layer.macs(9) == 0


def test_classes_mistaken_for_one_another_are_grouped():
    labels, predicted = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 0, 2])
    assert confusion(predicted, labels, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    table = torch.eye(6) * 90
    for a, b in ((0, 3), (3, 0), (1, 4), (4, 5), (5, 1)):
        table[a, b] += 10
    assert groups(table, 3) == (0, 1, 2, 0, 1, 1)
    assert groups(table, 1) == (0,) * 6
    assert len(set(groups(torch.zeros(4, 4), 2))) <= 2
    for call, message in (
        (lambda: groups(table, 7), r"must lie in \[1, 6\]; got 7"),
        (lambda: confusion(predicted, labels, 2), r"all in \[0, 2\)"),
        (lambda: Dense(FeedForward(D, 6, 2)), "a dense layer has one expert; got 2"),
        (lambda: SelfAttention(D, 3), "heads must divide the width 8; got 3"),
        (lambda: ComposedSettings(width=D, patch=4, grid=(1, 1), classes=2, head="class_mean"), "with a class token"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
