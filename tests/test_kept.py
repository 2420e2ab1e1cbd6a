"""Experts cut out of one network beside experts cut by chance, and what is left of an answer."""

import pytest
import torch

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense
from nestor.measure.kept import answers, heard
from nestor.measure.left_out import by_run, left_out
from nestor.models.composed import stack, tiny
from nestor.surgery.chance import drawn, scattered
from nestor.surgery.grow import emerge
from nestor.types import Signal

torch.manual_seed(0)
ONE, TOKENS = FeedForward(12, 24, 1), torch.randn(3, 20, 12)


def test_any_cut_with_all_experts_is_the_network():
    layer = scattered(ONE, 6, 6)
    torch.testing.assert_close(layer(TOKENS)[0], Dense(ONE)(TOKENS)[0], rtol=1e-5, atol=1e-6)
    weight, inward = layer.router.get_parameter("score.weight"), layer.get_parameter("experts.inward")
    torch.testing.assert_close(weight, inward.mean(1))
    assert not weight.requires_grad


def test_chance_chooses_as_many_other_experts():
    layer = emerge(ONE, 6, 2)
    ours, chance = answers(layer, TOKENS)
    assert torch.equal(ours, layer(TOKENS)[0])
    assert not torch.isclose(ours, chance).all(-1).any()
    whole, turned = answers(emerge(ONE, 6, 6), TOKENS)
    torch.testing.assert_close(whole, turned, rtol=1e-5, atol=1e-6)


def test_drawn_networks_choose_otherwise_each_time_and_leave_the_others_alone():
    model = tiny(12, stack(12, 2, [Dense(FeedForward(12, 24, 1)), emerge(FeedForward(12, 24, 1), 6, 2)]))
    images = torch.randn(2, 3, 28, 28)
    made, before = drawn(model), model(images).tokens
    (first,), (second,) = made(images).routings, made(images).routings
    assert first.index.shape == second.index.shape == (2, 49, 2)
    assert not torch.equal(first.index, second.index)
    assert torch.equal(model(images).tokens, before)
    assert torch.equal(torch.cat([first.weight, second.weight]), torch.ones(4, 49, 2))
    block = model.chain[1]
    tokens, _ = model.chain[0](model.embed(images), Signal())
    torch.testing.assert_close(heard(model, 1, images), block.norm2(tokens + block.attention(block.norm1(tokens))))


def test_runs_over_all_that_was_left_out_are_one_dot_each():
    found = {
        "a": {"accuracy": {"x": [0.2, 0.4], "y": [0.5, 0.5]}},
        "b": {"accuracy": {"x": [0.4, 0.6], "y": [0.7, 0.1]}},
    }
    assert by_run(found, "accuracy") == {"x": pytest.approx([0.3, 0.5]), "y": pytest.approx([0.6, 0.3])}
    dots = left_out({"cells": found})
    assert dots is not None
    assert [(each.title, each.rows) for each in dots] == [("cells", by_run(found, "accuracy"))]
    assert left_out({}) is None
