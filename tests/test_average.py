"""The mean of networks."""

import pytest
import torch
from tiny_vit import NARROWED, SKIPPING, tiny

from nestor.surgery.average import averaged


def test_every_weight_is_the_mean_and_nothing_is_changed():
    models = [tiny(NARROWED, classes=2) for _ in range(3)]
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    mean = averaged(models).state_dict()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, sum(state[name] for state in before) / 3)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    alone = averaged(models[:1]).state_dict()
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in alone.items())


def test_networks_that_differ_are_refused():
    for models in ([], [tiny(NARROWED), tiny(SKIPPING)]):
        with pytest.raises(ValueError, match="must have the same settings"):
            averaged(models)
