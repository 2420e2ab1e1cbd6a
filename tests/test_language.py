"""A text as letters, networks that hear nothing of the future, and how well they guess what comes next."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from nestor.data.text import reference, windows
from nestor.experts.feedforward import FeedForward
from nestor.layers.block import SelfAttention
from nestor.layers.causal import Causal
from nestor.layers.heads import SeparateHeads, taken
from nestor.layers.mixture import Mixture
from nestor.layers.routed import RoutedBlock
from nestor.models.causal import CausalModel
from nestor.routing import losses
from nestor.routing.adjust import Softmax
from nestor.routing.always import everyone
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.training.next_word import Priced, next_letters, perplexity, swayed
from nestor.training.settings import Fit
from nestor.training.tasks import Seen, Task, learn
from nestor.types import Signal

D, H, T = 12, 3, 9


def chosen(k: int) -> ComposedRouter:
    return ComposedRouter(Dot(D, H), [Softmax()], partial(top_k, k=k))


def model(k: int = 1, words: int = 128) -> CausalModel:
    torch.manual_seed(0)
    layer = Mixture(chosen(k), FeedForward(D, 2 * D, H))
    blocks = [RoutedBlock(D, Causal(SeparateHeads(D, H, chosen(k))), layer) for _ in range(2)]
    return CausalModel(words, D, T, blocks)


def few(task: Task) -> Task:
    return replace(task, images=task.images[:64], targets=task.targets[:64])


def test_pieces_begin_where_the_last_one_ends():
    pieces = windows("abcdefgh", 3)
    assert [bytes(piece.tolist()).decode() for piece in pieces] == ["abcd", "defg"]
    assert bytes(windows("a–b", 2)[0].tolist()) == b"a?b"
    for text, length in (("abc", 3), ("abc", 0), ("", 1)):
        with pytest.raises(ValueError, match="one more; got a text of"):
            windows(text, length)


def test_the_reference_is_prose_and_its_parts_differ():
    first, second = reference()
    assert len(first) > 5 * len(second) > 50_000
    assert "statement" in first
    assert second[:2000] not in first


def test_all_heads_with_weights_one_are_attention_to_what_came_before():
    torch.manual_seed(0)
    plain, tokens = SelfAttention(D, H), torch.randn(2, T, D)
    answer, _ = Causal(taken(SeparateHeads(D, H, everyone(H)), plain))(tokens)
    ends = torch.stack([plain(tokens[:, : place + 1])[:, -1] for place in range(T)], 1)
    torch.testing.assert_close(answer, ends)


def test_a_head_hears_only_letters_that_chose_it():
    torch.manual_seed(0)
    made, tokens = Causal(SeparateHeads(D, H, chosen(1))), torch.randn(1, T, D)
    answer, (routing,) = made(tokens)
    first = int(routing.index[0, 0, 0])
    for place in range(1, T):
        others = tokens.clone()
        others[:, 0] *= 1.5
        same = torch.equal(made(others)[0][:, place], answer[:, place])
        assert same == (int(routing.index[0, place, 0]) != first)


def test_masked_letters_are_not_heard():
    torch.manual_seed(0)
    made, tokens = Causal(SeparateHeads(D, H, chosen(2))), torch.randn(2, T, D)
    mask = torch.arange(T).lt(5).expand(2, T)
    answer, _ = made(tokens, Signal(mask=mask))
    torch.testing.assert_close(answer[:, :5], made(tokens[:, :5])[0])
    assert not answer[:, 5:].any()


@pytest.mark.parametrize("place", [1, 4, T - 1])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_later_words_change_nothing(k: int, place: int):
    ids = torch.randint(128, (3, T), generator=torch.Generator().manual_seed(k))
    assert swayed(model(k).double(), ids, place) < 1e-12
    earlier = ids.clone()
    earlier[:, 0] += 1
    assert (model(k)(ids).tokens != model(k)(earlier % 128).tokens).any()


def test_a_network_that_knows_nothing_is_as_perplexed_as_there_are_letters():
    task, judge = next_letters(T)
    assert task.images.shape[1] == task.targets.shape[1] == T
    assert torch.equal(judge.images[:, 1:], judge.targets[:, :-1])
    found, macs = perplexity(model(), few(judge))
    assert found == pytest.approx(128, rel=1e-4)
    assert macs > model().head.weight.numel()
    with pytest.raises(ValueError, match="at most 9 words have a place"):
        model()(torch.zeros(1, T + 1, dtype=torch.long))


def test_it_learns_letters_and_a_price_is_a_mean():
    task, judge = next_letters(T)
    made = learn(model(), [task], Fit(steps=30, batch=32, rate=0.1, router_rate=1.0), beside=Priced(loss=losses.switch))  # pyright: ignore[reportArgumentType]
    assert perplexity(made, few(judge))[0] < 60  # pyright: ignore[reportArgumentType]
    output = model()(task.images[:4])
    seen = [Seen(task=task, rows=torch.arange(4), output=output)]
    each = [losses.switch(routing) for routing in output.routings]  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(Priced(loss=losses.switch)(None, seen), 0.01 * torch.stack(each).mean())
