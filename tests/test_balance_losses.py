"""Balance losses against values small enough to check by hand."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from nestor.routing import losses
from nestor.routing.adjust import Noise, Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.types import Origin, Signal, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")


def table(*rows: list[float]) -> torch.Tensor:
    """One item."""
    return torch.tensor([list(rows)])


def test_losses_by_hand():
    # Two tokens, two experts: all choose expert 0, with probability 3/4.
    logits = table([math.log(3), 0.0], [math.log(3), 0.0])
    routing = top_k(logits.softmax(-1), k=1)
    routing = Sparse(routing.scores, routing.index, routing.weight, Origin(logits, logits, routing.index))
    assert losses.switch(routing).item() == pytest.approx(2 * 0.75)
    assert losses.switch_by_item(routing).item() == pytest.approx(2 * 0.75)
    assert losses.group(routing, groups=2).item() == pytest.approx(2 * 0.75)
    assert losses.group(routing, groups=1).item() == pytest.approx(1)
    assert losses.importance(routing).item() == pytest.approx(0.25)
    assert losses.importance(routing, costs=(1, 3)).item() == pytest.approx(0, abs=1e-6)
    assert losses.gates(routing).item() == pytest.approx(1)
    assert losses.z(routing).item() == pytest.approx(math.log(4) ** 2)
    nats = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert losses.entropy(routing).item() == pytest.approx(nats)
    assert losses.spread(routing).item() == pytest.approx(nats)
    assert losses.cost(routing, (4, 8)).item() == pytest.approx(5)
    # Expert 0 keeps its place with probability 1/2, expert 1 takes it with that of a step of log 3 in noise of 1.
    step = 0.5 * (1 + math.erf(-math.log(3) / math.sqrt(2)))
    expected = ((0.5 - step) / (0.5 + step)) ** 2
    assert losses.load(routing, 1.0).item() == pytest.approx(expected, rel=1e-5)
    # An expert that takes three times as long is as busy with a third of the tokens.
    dear = ((0.5 - 3 * step) / (0.5 + 3 * step)) ** 2
    assert losses.load(routing, 1.0, costs=(1, 3)).item() == pytest.approx(dear, rel=1e-5)
    assert losses.load(routing, 1.0, costs=(step, 0.5)).item() == pytest.approx(0, abs=1e-6)


def test_switch_is_one_when_balanced_and_items_are_balanced_by_themselves():
    even = Sparse(torch.full((2, 2, 2), 0.5), torch.tensor([[[0], [1]], [[1], [0]]]), torch.full((2, 2, 1), 0.5))
    assert losses.switch(even).item() == pytest.approx(1)
    # Together these items are balanced, each alone is not.
    logits = torch.tensor([[[9.0, 0.0]] * 2, [[0.0, 9.0]] * 2])
    split = top_k(logits.softmax(-1), k=1)
    assert losses.switch(split).item() == pytest.approx(1)
    assert losses.switch_by_item(split).item() == pytest.approx(2, rel=1e-3)


def test_the_noise_model_predicts_the_load():
    logits, deviation = torch.randn(1, 1, 5).expand(1, 4000, 5), 0.5
    noise = Noise(deviation)
    routing = ComposedRouter(Dot(5, 5), [noise, Softmax()], partial(top_k, k=1))
    with torch.no_grad():
        routing.score.get_parameter("weight").copy_(torch.eye(5))
    decision = routing(logits, Signal())
    assert isinstance(decision, Sparse)
    assert decision.origin is not None
    last = decision.origin.noisy.amax(-1, keepdim=True)
    predicted = torch.special.ndtr((decision.origin.logits - last) / deviation).mean((0, 1))
    again = F.one_hot((logits + deviation * torch.randn(1, 4000, 5)).argmax(-1), 5).float().mean((0, 1))
    assert torch.equal(predicted.argsort(), again.argsort())
    value = losses.load(decision, deviation).item()
    assert value == pytest.approx((predicted.var(correction=0) / predicted.mean() ** 2).item(), rel=1e-4)
