"""Heads as experts: parity with plain attention, with heads computed one by one, and what they cost."""

from functools import partial

import pytest
import torch
from torch import Tensor

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Block, Dense, SelfAttention
from nestor.layers.heads import ChosenHeads, SeparateHeads, taken
from nestor.layers.routed import RoutedBlock
from nestor.layers.together import dense
from nestor.models.composed import stack, tiny
from nestor.ops.lists import gather, listed, scatter
from nestor.routing.adjust import Softmax
from nestor.routing.always import Always, Lengths, everyone
from nestor.routing.choose import expert_choice, soft, top_k
from nestor.routing.learned import Dot, Slots
from nestor.routing.refine import renormalise
from nestor.routing.router import ComposedRouter
from nestor.surgery.exchange import with_attention, with_layers
from nestor.surgery.heads import cut_heads
from nestor.types import Signal, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

D, H, T = 12, 4, 9
KINDS = (ChosenHeads, SeparateHeads)


def some(k: int = 2) -> ComposedRouter:
    return ComposedRouter(Dot(D, H), [Softmax()], partial(top_k, k=k), [renormalise])


def sparse(routing) -> Sparse:
    assert isinstance(routing, Sparse)
    return routing


def naive(layer, tokens: Tensor, routing: Sparse) -> Tensor:
    """Item by item and head by head; heads of their own hear only the tokens that chose them."""
    weight, hits = dense(routing), torch.zeros_like(routing.scores).scatter(-1, routing.index.clamp_min(0), 1.0)
    items = []
    for b, item in enumerate(tokens):
        total = layer.outward_bias.expand(len(item), D).clone()
        for h in range(H):
            asks = hits[b, :, h] > 0
            heard = item[asks] if isinstance(layer, SeparateHeads) else item
            q, k, v = (
                rows @ layer.inward[i, h].T + layer.inward_bias[i, h]
                for i, rows in enumerate((item[asks], heard, heard))
            )
            mixed = (q @ k.T * (D // H) ** -0.5).softmax(-1) @ v
            total = total.index_add(0, asks.nonzero()[:, 0], weight[b, asks, h, None] * (mixed @ layer.outward[h]))
        items.append(total)
    return torch.stack(items)


def test_tokens_go_to_lists_and_back():
    chosen = torch.tensor([[[1, 0], [0, 0], [1, 1]], [[0, 0], [1, 0], [0, 0]]]).bool()
    place, real = listed(chosen)
    assert place[real].tolist() == [0, 2, 2, 1]
    assert real.tolist() == [[[True, True], [True, False]], [[True, False], [False, False]]]
    tokens = torch.randn(2, 3, 5)
    rows = gather(tokens, place) * real.unsqueeze(-1)
    torch.testing.assert_close(scatter(rows, place, 3), tokens * chosen.sum(-1, keepdim=True))
    assert listed(torch.zeros(2, 3, 4).bool())[1].tolist() == [[[False]] * 4] * 2
    assert listed(torch.zeros(2, 0, 4).bool())[0].shape == (2, 4, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_all_heads_with_weight_one_are_plain_attention(kind):
    plain, tokens = SelfAttention(D, H), torch.randn(3, T, D)
    layer = taken(kind(D, H, everyone(H)), plain)
    answer, (routing,) = layer(tokens)
    torch.testing.assert_close(answer, plain(tokens))
    assert layer.macs(routing, (3, T, D)) == 3 * plain.macs(T)
    with pytest.raises(ValueError, match=r"both must have 4 heads of 3 channels and the width 12; got 2 heads"):
        taken(layer, SelfAttention(D, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_chosen_heads_equal_heads_one_by_one_with_gradients(kind, k):
    layer, tokens = kind(D, H, some(k)), torch.randn(2, T, D)
    torch.nn.init.normal_(layer.outward_bias)
    answer, _ = layer(tokens)
    toward = torch.randn_like(answer)
    (answer * toward).sum().backward()
    ours = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    wanted = naive(layer, tokens, sparse(layer.router(tokens, Signal())))
    torch.testing.assert_close(answer, wanted)
    (wanted * toward).sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(ours[name], p.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("each", [2, 5])
def test_heads_may_be_as_wide_as_one_likes(kind, each):
    layer = kind(D, H, some(), each=each)
    answer, (routing,) = layer(torch.randn(2, T, D))
    assert answer.shape == (2, T, D)
    if kind is ChosenHeads:
        counted = 2 * T * D * H + 2 * 2 * T * H * each * D + 2 * T * 2 * (2 * D * each + 2 * T * each)
        assert layer.macs(routing, (2, T, D)) == counted


def test_lists_cost_as_much_as_an_items_longest():
    layer = SeparateHeads(D, H, ComposedRouter(Dot(D, H), [Softmax()], partial(expert_choice, counts=(5, 2, 1, 0))))
    _, (routing,) = layer(torch.randn(2, T, D))
    assert layer.macs(routing, (2, T, D)) == 2 * T * D * H + 2 * 3 * (4 * 5 * 3 * D + 2 * 25 * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_and_gets_nothing(kind):
    layer, tokens = kind(D, H, some()), torch.randn(2, T, D)
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[:, 6:] = False
    alone, _ = layer(tokens[:, :6])
    padded, _ = layer(tokens.masked_fill(~mask.unsqueeze(-1), torch.nan), Signal(mask=mask))
    torch.testing.assert_close(padded[:, :6], alone)
    assert not padded[:, 6:].any()
    nothing, _ = layer(tokens, Signal(mask=torch.zeros_like(mask)))
    assert not nothing.any()
    nothing.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, T), (2, 1)])
def test_few_tokens_are_answered(kind, shape):
    answer, _ = kind(D, H, some())(torch.randn(*shape, D))
    assert answer.shape == (*shape, D)
    assert answer.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_near_single(kind):
    layer, tokens = kind(D, H, everyone(H)), torch.randn(2, T, D)
    torch.testing.assert_close(
        layer.bfloat16()(tokens.bfloat16())[0].float(), layer.float()(tokens)[0], rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bad_heads_are_refused(kind):
    for call, message in (
        (lambda: kind(D, 5, some()), "heads must divide the width 12, or say how wide each is; got 5 and None"),
        (lambda: kind(D, 3, some())(torch.randn(1, 2, D)), "a sparse decision over 3 of them; got Sparse over 4"),
        (
            lambda: kind(D, H, ComposedRouter(Slots(D, H, slots=1), [], partial(soft, slots=1)))(torch.randn(1, 2, D)),
            "got Soft over 4",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_two_stages_weigh_as_published_and_balance_only_what_is_chosen():
    inner = ComposedRouter(Dot(D, 3), [Softmax()], partial(top_k, k=2), [partial(renormalise, scale=2)])
    router, tokens = Always(D, 2, inner), torch.randn(2, T, D)
    ones = dense(router(tokens, Signal()))
    torch.testing.assert_close(ones[..., :2], torch.ones(2, T, 2))
    torch.testing.assert_close(ones.sum(-1), torch.full((2, T), 4.0))
    for part in (router.share, router.kind):
        torch.nn.init.normal_(part)
    routing = router(tokens, Signal())
    share, kind = (tokens @ router.share.T).softmax(-1), 2 * (tokens @ router.kind.T).softmax(-1)
    old = sparse(inner(tokens, Signal()))
    torch.testing.assert_close(dense(routing)[..., :2], kind[..., :1] * 2 * share)
    torch.testing.assert_close(dense(routing)[..., 2:], kind[..., 1:] * dense(old))
    assert torch.equal(routing.scores[..., 2:], old.scores)
    assert routing.origin is not None
    assert int(routing.origin.wanted.min()) == 2
    assert router.macs(T) == T * D * (3 + 2 + 2)
    with pytest.raises(ValueError, match="at least one expert must answer always; got 0"):
        Always(D, 0, inner)
    with pytest.raises(ValueError, match="only sparse decisions can be joined"):
        Always(D, 1, ComposedRouter(Slots(D, 3, slots=1), [], partial(soft, slots=1)))(tokens, Signal())


def test_long_queries_are_heard_and_learn_with_the_heads():
    layer, tokens = ChosenHeads(D, H, everyone(H)), torch.randn(2, T, D)
    score = Lengths(layer.inward, layer.inward_bias, first=1)
    lengths = torch.stack(
        [(tokens @ layer.inward[0, h].T + layer.inward_bias[0, h]).norm(dim=-1) for h in range(1, H)], -1
    )
    torch.testing.assert_close(score(tokens, Signal()), lengths / lengths.std(-1, keepdim=True, correction=0))
    assert score.macs(T) == T * 3 * 3 * D
    model = tiny(D, [RoutedBlock(D, ChosenHeads(D, H, everyone(H)), Dense(FeedForward(D, 8, 1)))])  # pyright: ignore
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(cut_heads(model, H, 2)(images).tokens, model(images).tokens)
    cut = cut_heads(model, 3, 2)
    own = cut.chain[0].attention
    assert own.router.router.score.inward is own.inward  # pyright: ignore
    assert own.inward is not model.chain[0].attention.inward  # pyright: ignore
    hits = dense(sparse(cut(images).routings[0]))
    assert torch.equal(hits.detach().sum(-1), torch.full((2, 49), 3.0))
    with pytest.raises(ValueError, match=r"heads must lie in \(2, 4\] and 2 of them be at least 1; got 5"):
        cut_heads(model, 5, 2)


def test_attention_and_layers_are_exchanged_in_a_copy():
    model, images = tiny(D, stack(D, H, [Dense(FeedForward(D, 8, 1)) for _ in range(2)])), torch.randn(2, 3, 28, 28)
    routed = with_attention(model, lambda part: taken(ChosenHeads(D, H, everyone(H)), part))
    assert all(isinstance(block, RoutedBlock) for block in routed.chain)
    assert all(isinstance(block, Block) for block in model.chain)
    torch.testing.assert_close(routed(images).tokens, model(images).tokens)
    assert routed.macs(routed(images), 2, 49) == model.macs(model(images), 2, 49)
    same = with_attention(model, lambda part: part)
    torch.testing.assert_close(same(images).tokens, model(images).tokens)
    wider = with_layers(model, lambda layer: Dense(FeedForward(D, 16, 1)))
    assert wider.macs(wider(images), 2, 49) - model.macs(model(images), 2, 49) == 2 * 49 * 2 * 8 * D
    with pytest.raises(ValueError, match="only attention that decides nothing can be exchanged; got ChosenHeads"):
        with_attention(routed, lambda part: part)
