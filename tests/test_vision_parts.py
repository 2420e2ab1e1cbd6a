"""Marked tokens, amended networks, angular attention, shifts and energies: by hand and by parity."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from nestor.experts.feedforward import GELU, SWIGLU, FeedForward
from nestor.experts.lowrank import Kronecker, LoRA
from nestor.experts.rounded import LEAST, Rounded, shift
from nestor.layers.amended import Amended
from nestor.layers.angular import AngularAttention, binary, unit
from nestor.layers.block import Dense, SelfAttention
from nestor.layers.mixture import Mixture
from nestor.layers.together import dense
from nestor.measure.adjacent import agreement
from nestor.measure.energy import PICOJOULES, energy, multiplied, operations
from nestor.models.composed import stack, tiny
from nestor.ops.shifts import fixed, shift_add
from nestor.routing.adjust import Softmax
from nestor.routing.always import everyone
from nestor.routing.choose import expert_choice, top_k
from nestor.routing.learned import Dot
from nestor.routing.marks import Marks, relative
from nestor.routing.router import ComposedRouter
from nestor.surgery.exchange import with_attention, with_layers
from nestor.surgery.shifts import primitives, rounded
from nestor.surgery.slices import sliced
from nestor.types import Signal, Soft, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

D, T = 8, 9


def sparse(routing) -> Sparse:
    assert isinstance(routing, Sparse)
    return routing


def test_experts_choose_among_the_tokens_that_marked_them():
    router = ComposedRouter(Dot(D, 4), [Softmax(), Marks(2)], partial(expert_choice, counts=(3, 3, 3, 3)))
    routing, tokens = None, torch.randn(2, T, D)
    routing = sparse(router(tokens, Signal()))
    marked = torch.zeros_like(routing.scores).scatter(-1, routing.scores.topk(2).indices, 1.0).bool()
    taken = dense(routing) > 0
    assert not (taken & ~marked).any()
    for b in range(2):
        for e in range(4):
            offers = routing.scores[b, :, e].masked_fill(~marked[b, :, e], -1)
            wanted = {t for t in offers.topk(3).indices.tolist() if marked[b, t, e]}
            assert set(taken[b, :, e].nonzero()[:, 0].tolist()) == wanted
    with pytest.raises(ValueError, match="must mark at least one expert; got 0"):
        Marks(0)
    with pytest.raises(ValueError, match="can mark at most all 4 experts; got 5"):
        ComposedRouter(Dot(D, 4), [Marks(5)], partial(top_k, k=1))(tokens, Signal())


def test_relative_weights_are_one_and_learn_as_their_logarithm():
    weight = torch.tensor([[[0.5, 0.2, 0.0]]], requires_grad=True)
    routing = Sparse(torch.rand(1, 1, 4), torch.tensor([[[2, 0, -1]]]), weight)
    one = relative(routing).weight
    assert one.tolist() == [[[1.0, 1.0, 0.0]]]
    one[..., :2].sum().backward()
    assert weight.grad is not None
    assert weight.grad[0, 0, :2].tolist() == pytest.approx([2.0, 5.0])


@pytest.mark.parametrize("activation", [GELU, SWIGLU])
def test_amended_networks_equal_networks_with_the_sum_in_their_weights(activation):
    one = FeedForward(D, 6, 1, activation=activation)
    inward, outward = LoRA(D, 2, 3, out=activation.fan * 6), LoRA(6, 2, 3, out=D)
    for part in (inward, outward):
        torch.nn.init.normal_(part.up)
    layer = Amended(one, ComposedRouter(Dot(D, 3), [Softmax()], partial(top_k, k=2)), inward, outward)
    tokens = torch.randn(2, T, D)
    answer, (routing,) = layer(tokens)
    for b in range(2):
        for t in range(T):
            gate = dense(sparse(routing))[b, t]
            first, second = (torch.einsum("e,eor,erd->od", gate, part.up, part.down) for part in (inward, outward))
            whole = FeedForward.of(
                one.inward + first, one.outward + second, one.inward_bias, one.outward_bias, activation=activation
            )
            torch.testing.assert_close(answer[b, t], whole(tokens[b, t : t + 1], torch.tensor([1]))[0])
    answer.square().sum().backward()
    learned = {name.split(".")[0] for name, p in layer.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"router", "inward", "outward"}
    added = 2 * (D + activation.fan * 6 + 6 + D)
    assert layer.macs(routing, (2, T, D)) == 2 * T * (3 * D + one.costs[0] + 2 * added)


def test_amended_networks_start_as_they_were_and_leave_padding_alone():
    one = FeedForward(D, 8, 1)
    layer = Amended(one, everyone(3), Kronecker(D, 2, 1, 3, out=8), Kronecker(8, 2, 1, 3, out=D))
    tokens, mask = torch.randn(2, T, D), torch.arange(T).expand(2, T) < 5
    torch.testing.assert_close(layer(tokens)[0], Dense(one)(tokens)[0])
    padded, _ = layer(tokens.masked_fill(~mask.unsqueeze(-1), torch.nan), Signal(mask=mask))
    torch.testing.assert_close(padded[:, :5], layer(tokens[:, :5])[0])
    assert not padded[:, 5:].any()
    assert layer(torch.randn(0, T, D))[0].shape == (0, T, D)
    for call, message in (
        (lambda: Amended(FeedForward(D, 8, 2), everyone(3), LoRA(D, 1, 3), LoRA(D, 1, 3)), "got 2, 3 and 3"),
        (lambda: Amended(one, everyone(3), LoRA(D, 1, 3), LoRA(D, 1, 2)), "got 1, 3 and 2"),
        (lambda: Amended(one, everyone(2), LoRA(D, 1, 3), LoRA(D, 1, 3))(tokens), "over 2 experts and there are 3"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_neighbours_agree_where_they_have_one_expert():
    index = torch.tensor([[3, 0, 0, 1, 0, 1, 1]]).unsqueeze(-1)
    routing = Sparse(torch.rand(1, 7, 4), index, torch.ones(1, 7, 1))
    # Two rows of three: 0 0 1 over 0 1 1.
    assert agreement([routing], (2, 3)) == pytest.approx((1 + 0 + 1 + 1 + 0 + 0 + 1) / 7)
    nobody = Sparse(routing.scores, torch.full_like(index, -1), routing.weight)
    assert agreement([routing, nobody], (2, 3)) == pytest.approx(4 / 14)
    for odd, grid in (([], (2, 3)), ([routing], (1, 1)), ([Soft(routing.scores, index, index)], (2, 3))):
        with pytest.raises(ValueError, match="neighbours need a sparse decision and two patches"):
            agreement(odd, grid)


@pytest.mark.parametrize("code", [unit, binary])
def test_angular_attention_equals_its_quadratic_form(code):
    layer, tokens = AngularAttention.of(SelfAttention(D, 2), code), torch.randn(2, T, D)
    torch.nn.init.normal_(layer.near)
    query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer.inward(tokens).chunk(3, -1))
    mixed = F.normalize(value / 2 + code(query) @ code(key).mT @ value / math.pi, dim=-1)
    values = value.transpose(1, 2).flatten(2)
    near = torch.zeros_like(values)
    for t in range(T):
        for offset in range(-4, 5):
            if 0 <= t + offset < T:
                near[:, t] += values[:, t + offset] * layer.near[:, 0, offset + 4]
    torch.testing.assert_close(layer(tokens), layer.outward(mixed.transpose(1, 2).flatten(2) + near))
    assert layer.macs(T) == 4 * T * D * D + 9 * T * D + 2 * T * D * 4
    again = AngularAttention.of(layer, unit)
    assert torch.equal(again.near, layer.near)
    assert not AngularAttention.of(SelfAttention(D, 2), code).near.any()
    for kind in (0.0, 1e12, 1e-30):
        assert layer(torch.full((1, 3, D), kind)).isfinite().all()
    with pytest.raises(ValueError, match="heads must divide the width 8; got 3"):
        AngularAttention(D, 3)


def test_codes_are_zero_or_one_and_learn_between():
    rows = torch.tensor([[3.0, -1.0, 0.5, 0.2]], requires_grad=True)
    code = binary(rows)
    assert code.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    code.sum().backward()
    wanted = rows.detach().clone().requires_grad_()
    F.normalize(wanted, dim=-1).clamp(0, 1).sum().backward()
    torch.testing.assert_close(rows.grad, wanted.grad)


def test_shifts_and_additions_are_the_products_to_the_bit():
    rows, weight = fixed(torch.randn(5, D) * 100), shift(torch.randn(7, D) * 0.2)
    weight[0, :3] = 0
    exact = (rows.double() @ weight.double().T) * 2.0**-LEAST
    assert torch.equal(shift_add(rows, weight, LEAST).double(), exact)
    assert fixed(torch.tensor([1.0, -0.5])).tolist() == [65536, -32768]
    for odd in (0.3, 2.0):
        with pytest.raises(ValueError, match=r"weights must be 0 or powers of two from 2\^-14 to 1"):
            shift_add(rows, torch.full((1, D), odd), LEAST)


def test_rounded_copies_share_no_weight_and_primitives_start_as_the_network():
    one = FeedForward(D, 6, 1)
    made = rounded(one)
    assert isinstance(made, Rounded)
    tokens = torch.randn(4, D)
    exact = FeedForward.of(shift(one.inward), shift(one.outward), one.inward_bias, one.outward_bias)
    torch.testing.assert_close(made(tokens, torch.tensor([4])), exact(tokens, torch.tensor([4])))
    assert made.inward.data_ptr() != one.inward.data_ptr()
    layer = primitives(Dense(one), 0.5).eval()
    for first in (4, 0):
        counts = torch.tensor([first, 4 - first])
        torch.testing.assert_close(layer.experts(tokens, counts), (one if first else exact)(tokens, torch.tensor([4])))
    with pytest.raises(ValueError, match="only experts with biases"):
        rounded(FeedForward(D, 6, 1, bias=False))
    with pytest.raises(ValueError, match="only a feed-forward network can be had both ways; got LoRA"):
        primitives(Dense(LoRA(D, 1, 1)), 0.5)


def test_operations_are_those_of_each_kind_and_energy_is_their_sum():
    plain, images = tiny(D, stack(D, 2, [Dense(FeedForward(D, 6, 1))])), torch.randn(3, 3, 28, 28)
    macs = plain.macs(plain(images), 3, 49)
    assert operations(plain, plain(images), 3, 49) == {"multiply": macs, "add": macs, "integer add": 0}
    assert energy({"multiply": 2, "shift": 3}) == 2 * PICOJOULES["multiply"] + 3 * PICOJOULES["shift"]
    coded = with_attention(plain, partial(AngularAttention.of, code=binary))
    model = with_layers(coded, lambda layer: Dense(rounded(layer.experts)))
    products, network = 2 * 49 * D * 4, 49 * 2 * 6 * D
    found = operations(model, model(images), 3, 49)
    assert found["shift"] == network
    assert found["integer add"] == network + products
    assert found["multiply"] == found["add"] == macs - network - 2 * 49 * 49 * D + 9 * 49 * D
    assert multiplied(model, model(images), 3, 49) == 0
    both = with_layers(coded, partial(primitives, noise=0.5)).eval()
    output = both(images)
    share = int(output.routings[0].counts[0]) / (3 * 49)
    assert multiplied(both, output, 3, 49) == pytest.approx(share)
    assert operations(both, output, 3, 49)["shift"] == pytest.approx((1 - share) * network)
    odd = with_layers(plain, lambda layer: Mixture(everyone(1), layer.experts, FeedForward(D, 2, 1)))
    with pytest.raises(ValueError, match="energy is known of dense layers and mixtures; got Mixture"):
        operations(odd, odd(images), 3, 49)


def test_slices_add_up_to_the_network():
    one, tokens = FeedForward(D, 6, 1), torch.randn(2, T, D)
    torch.nn.init.normal_(one.outward_bias)  # pyright: ignore
    cut = sliced(one, 3)
    assert torch.equal(cut.inward[1], one.inward[0, 2:4])
    torch.testing.assert_close(Mixture(everyone(3), cut)(tokens)[0], Dense(one)(tokens)[0])
    with pytest.raises(ValueError, match="experts of equal size"):
        sliced(one, 4)
