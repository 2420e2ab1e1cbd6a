"""Kernels of small hardware against the plain ways, and what the simulation counts against hand-made numbers."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nestor.measure.accelerator import (
    Array,
    Encoder,
    Work,
    attention_steps,
    by_expert,
    by_token,
    compared,
    dealt,
    pinned,
    queues,
    schedule,
    total,
)
from nestor.measure.search import exhaustive, genetic, least
from nestor.measure.sharing import Shared, layout
from nestor.ops.attention import attend
from nestor.ops.rounded import FixedPoint, gelu_by_table
from nestor.ops.streaming import attend_fused, attend_in_one_pass, softmax_in_one_pass
from nestor.types import NOBODY, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

MAPS = ((32, 64), (64, 32))


@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0, 1e4])
def test_softmax_in_one_pass_is_softmax(scale):
    scores = scale * torch.randn(5, 4, 33)
    torch.testing.assert_close(softmax_in_one_pass(scores), scores.softmax(-1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least one score"):
        softmax_in_one_pass(torch.zeros(2, 0))


@pytest.mark.parametrize("way", [attend_in_one_pass, attend_fused])
def test_streamed_attention_is_attention_gradients_included(way):
    parts = [torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (7, 11, 11)]
    answer, wanted = way(*parts), attend(*parts)
    torch.testing.assert_close(answer, wanted)
    toward = torch.randn_like(answer)
    ours, theirs = (torch.autograd.grad((each * toward).sum(), parts) for each in (answer, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_gelu_from_a_table_is_gelu_to_four_digits():
    values = torch.linspace(-12, 12, 100_001)
    assert (gelu_by_table(values) - F.gelu(values)).abs().max() < 1e-4
    # Entries of the table are exact.
    at = torch.arange(-176, 177) / 32
    torch.testing.assert_close(gelu_by_table(at), F.gelu(at), rtol=0, atol=1e-6)
    assert torch.equal(gelu_by_table(torch.tensor([6.0, -6.0])), torch.tensor([6.0, 0.0]))


def test_fixed_point_numbers_are_the_nearest_and_saturate():
    number = FixedPoint(bits=4, whole=2)
    values = torch.tensor([0.1, 0.2, 1.6, 1.9, 7.0, -2.0, -9.0])
    assert number(values).tolist() == [0.0, 0.25, 1.5, 1.75, 1.75, -2.0, -2.0]
    fine = FixedPoint(bits=32, whole=10)(torch.tensor([511.75, 600.0, 2.0**-22]))
    assert fine.tolist() == pytest.approx([511.75, 512.0, 2.0**-22], rel=1e-6)
    with pytest.raises(ValueError, match=r"whole must lie in \[1, bits\].*got 5 and 4"):
        FixedPoint(bits=4, whole=5)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 20), parallel=st.integers(1, 25))
def test_every_query_meets_every_key_once_and_a_step_reads_one_of_each_at_most(tokens, parallel):
    steps = list(schedule(tokens, parallel))
    met = [(query, step.key) for step in steps for query in step.pairs]
    assert sorted(met) == sorted(product(range(tokens), range(tokens)))
    assert sorted(step.query for step in steps if step.query is not None) == list(range(tokens))
    assert max(len(step.pairs) for step in steps) <= parallel
    assert len(steps) == attention_steps(tokens, parallel)
    if tokens % parallel == 0:
        assert len(steps) == tokens * (tokens + parallel - 1) // parallel


def decided() -> Sparse:
    index = torch.tensor([[[0, 1], [0, 2], [1, 0]], [[3, NOBODY], [3, 0], [NOBODY, NOBODY]]])
    return Sparse(torch.ones(2, 3, 4), index, torch.ones(2, 3, 2))


def test_queues_load_an_expert_once_and_tokens_load_it_each_time():
    array, routing = Array(bus=1024), decided()
    assert queues(routing) == [[3, 2, 1, 0], [1, 0, 0, 2]]
    # Two maps of 2 x 4 tiles for each token, and 8192 bytes of weights for each expert, in 8 cycles.
    assert by_expert([3, 2, 1, 0], MAPS, array) == Work(8 + 16 * 6, 3 * 8192, 6 * 64 * 4, 3)
    assert by_token(routing.index[0].tolist(), MAPS, array) == Work(8 + 16 * 6, 6 * 8192, 6 * 64 * 4, 6)
    assert by_token(routing.index[1].tolist(), MAPS, array).loads == 3
    # Where memory is slow, loading is what takes time.
    slow = Array(bus=64)
    assert by_expert([3, 2, 1, 0], MAPS, slow).cycles == 128 + 128 + 128 + 16
    assert by_token(routing.index[0].tolist(), MAPS, slow).cycles == 6 * 128 + 16
    assert by_expert([0, 0], MAPS, array) == total([]) == Work(0, 0, 0, 0)
    both = compared(routing, MAPS, array)
    assert both["loads, queues"] == both["experts with tokens"] == [3, 2]
    assert both["loads, tokens"] == [6, 3]


def test_tokens_dealt_in_turn_wait_for_nobody():
    array = Array(units=2)
    assert dealt([4, 0, 2, 0], MAPS, array) == 3 * 16
    assert pinned([4, 0, 2, 0], MAPS, array) == 6 * 16
    assert pinned([4, 2, 0, 0], MAPS, array) == 4 * 16
    assert dealt([1, 1, 1, 1], MAPS, array) == 4 * 16


def test_an_accelerator_is_counted_part_by_part():
    array = Array(tile_in=8, tile_out=4, units=3, parallel=2, lanes=16, weight_bits=32)
    assert array.multipliers == 8 * 4 * 3 * 4 + 2 * 16
    assert array.linear(7, 9, 9) == 3 * 2 * 3
    assert array.memory(10) == (2 * 8 * 4 * 32 + (3 * 12 + 2 * 2 * 10) * 32) // 8
    assert array.attention(6, 20) == 6 * 7 // 2 * 2
    encoder = Encoder(tokens=6, width=20, depth=2, dense=((20, 80), (80, 20)), expert=((20, 40), (40, 20)))
    assert encoder.attention(array) == 2 * 42
    fast = Array(bus=10**6)
    work = encoder.linear(fast, [[3, 0, 3]])
    maps = [(20, 60), (20, 20)] * 2 + [(20, 80), (80, 20)]
    # The bus takes a cycle for each of the six maps and for the first expert.
    assert work.cycles == sum(1 + fast.linear(6, a, b) for a, b in maps) + 1 + 2 * 3 * 2 * 6
    assert work.loads == 6 + 2
    for call, message in (
        (lambda: Array(units=0), "must be at least 1"),
        (lambda: list(schedule(0, 4)), "tokens, and queries held; got 0 and 4"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_slower_kernel_sets_the_pace():
    encoder = Encoder(tokens=12, width=16, depth=2, dense=((16, 64), (64, 16)), expert=((16, 32), (32, 16)))
    shared = Shared(encoder=encoder, items=[[[12, 12]], [[24, 0]]], memory=10**6)
    paces = [shared.pace((8, 8, 2, 16), multipliers) for multipliers in (100, 150, 200, 300, 10_000)]
    assert paces[0] == float("inf")
    assert paces[1:] == sorted(paces[1:], reverse=True)
    linear = sum(encoder.linear(layout((8, 8, 2, 16)), item).cycles for item in shared.items) / 2
    assert paces[-1] == linear
    slim = Encoder(tokens=96, width=16, depth=2, dense=((16, 16),), expert=((16, 16),))
    alone = Shared(encoder=slim, items=[[[192]]], memory=10**6)
    assert alone.pace((16, 16, 4, 16), 1024 + 16) == slim.attention(Array(parallel=1))
    assert alone.pace((16, 16, 4, 16), 1024 + 64) == slim.attention(Array(parallel=4))
    assert Shared(encoder=encoder, items=shared.items, memory=10).pace((8, 8, 2, 16), 10_000) == float("inf")


def test_the_search_finds_what_trying_all_finds():
    space = (tuple(range(20)), tuple(range(20)), (1, 2, 4))

    def cost(choice):
        a, b, c = choice
        return float((a - 13) ** 2 + (b - 4) ** 2 + abs(c - 2) * 3) if a + b < 18 else float("inf")

    every, some = exhaustive(space, cost), genetic(space, cost, seed=3)
    assert every.choice == (13, 4, 2)
    assert every.tried == 1200
    assert some.cost <= every.cost + 2
    assert some.tried < 400
    assert genetic(space, cost, seed=3) == some
    assert genetic(space, cost, generations=1, start=[(13, 4, 2)]).choice == (13, 4, 2)
    assert least(lambda n: n * n >= 50, 0, 100) == 8
    assert least(lambda n: n >= 0, 3, 9) == 3
    assert least(lambda n: n > 9, 3, 9) is None
    for call, message in (
        (lambda: genetic(((),), cost), "needs a value"),
        (lambda: genetic(space, cost, population=3), "4 choices at a time"),
        (lambda: least(lambda n: True, 2, 1), "low must not lie above high; got 2 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
