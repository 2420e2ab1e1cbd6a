from functools import partial

import pytest
import torch
from tiny_pictures import shapes

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.measure.informed import ends, informed, least, rise, spread
from nestor.models.composed import stack, tiny
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.surgery.always import without_routed
from nestor.types import Sparse


def mixture(*, shared: bool = True) -> Mixture:
    router = ComposedRouter(Dot(8, 2), [Softmax()], partial(top_k, k=1))
    return Mixture(router, FeedForward(8, 16, 2), FeedForward(8, 16, 1) if shared else None)


def test_a_choice_by_class_tells_all_and_a_constant_one_nothing():
    pictures = shapes(8)
    labels = torch.tensor(pictures.labels)
    scores = torch.ones(8, 1, len(pictures.classes)) / len(pictures.classes)
    knows, nothing = (Sparse(scores, index.view(8, 1, 1), torch.ones(8, 1, 1)) for index in (labels, labels * 0))
    assert informed([nothing, knows], pictures) == pytest.approx([0, 1])
    with pytest.raises(ValueError, match="every item needs its label; got 4 pictures and 8 items"):
        informed([knows], pictures.subset(range(4)))


def test_layers_are_ordered_by_what_they_tell():
    known = [[0.3, 0.1, 0.2], [0.0, 0.4, 0.5]]
    assert [least(each, 2) for each in known] == [[1, 2], [0, 1]]
    assert ends(known, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]) == ((2 + 4) / 2, (1 + 6) / 2)
    assert rise(known) == pytest.approx(0.25 - 0.15)
    assert rise([[0.1, 0.3, 0.2]]) == pytest.approx(-0.1)
    assert spread([[0.5, 0.6], [0.7, 0.6], [0.6, 0.2]]) == pytest.approx((0.2 + 0.4) / 2)
    for reached in ([[1.0, 2.0]], [[1.0, 2.0]] * 2):
        with pytest.raises(ValueError, match=r"every layer needs a number|zip"):
            ends(known, reached)


@torch.no_grad()
def test_a_mixture_without_its_routed_experts_is_its_shared_one():
    layers = [mixture(), mixture()]
    model = tiny(8, stack(8, 2, layers)).eval()
    images = torch.randn(2, 3, 28, 28)
    pruned = without_routed(model, [1])
    assert isinstance(pruned.chain[1].layer, Dense)
    assert len(pruned.mixtures) == 1
    assert len(model.mixtures) == 2
    tokens = torch.randn(2, 5, 8)
    shared = layers[1].shared
    assert shared is not None
    torch.testing.assert_close(pruned.chain[1].layer(tokens)[0], Dense(shared)(tokens)[0], rtol=0, atol=0)
    saved = model.macs(model(images), 2, 49) - pruned.macs(pruned(images), 2, 49)
    assert saved == 49 * (2 * 8 * 16 + 2 * 8)
    assert torch.equal(without_routed(model, [])(images).tokens, model(images).tokens)
    alone = tiny(8, stack(8, 2, [mixture(shared=False)]))
    for which, number in ((model, 2), (alone, 0)):
        with pytest.raises(ValueError, match="has no shared expert to keep"):
            without_routed(which, [number])
