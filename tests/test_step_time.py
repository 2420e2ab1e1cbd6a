import pytest
import torch

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense
from nestor.measure.step_time import step_times
from nestor.models.composed import Composed, stack, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def net(depth: int) -> Composed:
    return tiny(16, stack(16, 2, [Dense(FeedForward(16, 32, 1)) for _ in range(depth)]))


def test_more_blocks_take_longer_and_nothing_is_left_behind():
    models = {"one": net(1), "many": net(8)}
    found = step_times(models, torch.randn(4, 3, 28, 28), rounds=5)
    assert list(found) == list(models)
    assert 0 < found["one"] < found["many"]
    assert all(parameter.grad is None for model in models.values() for parameter in model.parameters())
    with pytest.raises(ValueError, match="at least one candidate"):
        step_times({}, torch.randn(1, 3, 28, 28))
