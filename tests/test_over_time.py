import copy

import pytest
import torch
from tiny_pictures import shapes

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense
from nestor.models.composed import Composed, stack, tiny
from nestor.training.compare import Rival, train
from nestor.training.over_time import OverTime, over_time
from nestor.training.settings import Fit
from nestor.training.written import written

pytestmark = pytest.mark.usefixtures("one_thread")


def net(after: OverTime | None = None) -> Composed:
    model = tiny(8, stack(8, 2, [Dense(FeedForward(8, 16, 1))]))
    model.after = after
    return model


def test_the_mean_is_plain_at_first_and_exponential_then():
    follower, layer = OverTime(keep=0.5), torch.nn.Linear(1, 1, bias=False)
    for value, wanted in ((4.0, 4.0), (2.0, 3.0), (1.0, 2.0), (0.0, 1.0)):
        torch.nn.init.constant_(layer.weight, value)
        follower(layer, 0.0)
        assert follower.mean["weight"].item() == wanted
    with pytest.raises(ValueError, match="keep must lie in"):
        OverTime(keep=1.0)


def test_a_training_takes_its_own_mean_and_is_not_changed_by_it():
    pictures, how = shapes(20, classes=10, size=28), Fit(steps=3, batch=4, rate=0.03)
    plain, followed = (
        train(Rival(build=lambda each=each: net(copy.copy(each))), pictures, how, 0) for each in (None, OverTime())
    )
    assert isinstance(followed.after, OverTime)
    assert followed.after.steps == 3
    mean = over_time(followed)
    assert mean.after is None
    for (name, ours), theirs in zip(followed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(dict(mean.named_parameters())[name], followed.after.mean[name])
    assert not torch.equal(mean.head.weight, followed.head.weight)
    for bare in (plain, net(OverTime())):
        with pytest.raises(ValueError, match="there is no mean of the weights"):
            over_time(bare)


def test_digits_are_pictures():
    pytest.importorskip("sklearn")
    learn, judge = written()
    assert (len(learn), len(judge)) == (1347, 450)
    image, label = judge[0]
    assert image.shape == (3, 28, 28)
    assert label == judge.labels[0]
    assert set(judge.labels) == set(range(10))
    assert torch.equal(judge.pixels(3), learn.subset([0]).pixels(0)) is False
    assert learn.limit(20).cached().cache is not None
