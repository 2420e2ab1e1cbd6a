"""The mixture: laws for every router with every kind of expert."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from mixtures import EXPERTS, NORMALISED, ROUTERS, D, E, gradients, randomised, signal
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.experts.cheap import Identity
from nestor.experts.feedforward import FeedForward
from nestor.layers.mixture import Mixture
from nestor.routing.adjust import Adjustment, GroupLimit, Softmax
from nestor.routing.choose import expert_choice, grouped_top_k, sampled, threshold, top_k, top_p
from nestor.routing.fixed import Shuffled
from nestor.routing.given import Given
from nestor.routing.learned import Dot
from nestor.routing.refine import drop
from nestor.routing.router import Choice, ComposedRouter, ExpertPreferredRouter
from nestor.routing.score import TrailingEnergy
from nestor.routing.straight import StraightThrough
from nestor.types import Router, Routing, Signal, Soft, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

# Those with as many experts as the routers of these tests decide over.
FITTING = sorted(name for name, build in EXPERTS.items() if len(build().costs) == E)
# Every parameter has a slice for each expert, so that equal slices are equal experts.
STACKED = sorted(
    name
    for name in FITTING
    if all(p.ndim and len(p) == E for p in EXPERTS[name]().parameters()) and name not in ("nested", "nested_swiglu")
)
# Experts that all answer the same.
ALIKE = ("identity", "zero")


def only(choice: Choice, *gate: Adjustment) -> ComposedRouter:
    return ComposedRouter(Dot(D, 1), gate or [Softmax()], choice)


# Routers over one expert, by each choice there is.
ONLY: dict[str, Callable[[], Router]] = {
    "top_k": lambda: only(partial(top_k, k=1)),
    "top_p": lambda: only(partial(top_p, p=0.5)),
    "threshold": lambda: only(partial(threshold, least=0.5)),
    "grouped_top_k": lambda: only(partial(grouped_top_k, k=1, groups=1)),
    "sampled": lambda: only(partial(sampled, k=1)),
    "expert_choice": lambda: only(partial(expert_choice, factor=1.0)),
    "expert_choice_one": lambda: only(partial(expert_choice, factor=1.0, most=1)),
    "group_limit": lambda: only(partial(top_k, k=1), Softmax(), GroupLimit(groups=1, keep=1)),
    "expert_preferred": lambda: ExpertPreferredRouter(TrailingEnergy(2, 1)),
    "straight_through": lambda: StraightThrough(Dot(D, 1)),
    "given": lambda: ComposedRouter(Given(1), [Softmax()], partial(top_k, k=1)),
    "dropped": lambda: ComposedRouter(Dot(D, 1), [Softmax()], partial(top_k, k=1), [partial(drop, factor=1.0)]),
    "shuffled": lambda: Shuffled(1),
}


def for_every_pair(law: Callable[[str, str], None]) -> Callable[[str], None]:
    """A test of a law for each router, with every kind of experts: one for each pair would cost more than the law."""

    def test(router: str) -> None:
        for experts in FITTING:
            torch.manual_seed(0)
            try:
                law(router, experts)
            except Exception as error:
                error.add_note(f"This was router {router!r} with experts {experts!r}.")
                raise

    return pytest.mark.parametrize("router", ROUTERS)(test)


def naive(routing: Routing, layer: Mixture, tokens: Tensor) -> Tensor:
    """Token by token and expert by expert."""

    def answer(expert: int, row: Tensor) -> Tensor:
        return layer.experts(row.unsqueeze(0), F.one_hot(torch.tensor(expert), E))[0]

    items = []
    for b, item in enumerate(tokens):
        if isinstance(routing, Soft):
            slots = [[answer(e, routing.give[b, e, c] @ item) for c in range(routing.give.shape[2])] for e in range(E)]
            table = torch.stack([torch.stack(each) for each in slots])
            items.append(torch.einsum("tec,ecd->td", routing.take[b], table))
            continue
        assert isinstance(routing, Sparse)
        rows = []
        for t, row in enumerate(item):
            total = 0 * answer(0, row)
            for expert, weight in zip(routing.index[b, t].tolist(), routing.weight[b, t], strict=True):
                total = total if expert < 0 else total + weight * answer(expert, row)
            rows.append(total)
        items.append(torch.stack(rows))
    return torch.stack(items)


def mixed(router: str, experts: str) -> Mixture:
    return Mixture(ROUTERS[router](), randomised(EXPERTS[experts]()))


def learning(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@for_every_pair
def test_every_pair_equals_token_by_token_gradients_included(router, experts):
    layer, tokens = mixed(router, experts).eval(), torch.randn(1, 3, D)
    torch.manual_seed(1)
    answer, (routing,) = layer(tokens, signal(1, 3))
    expected = naive(routing, layer, tokens)
    torch.testing.assert_close(answer, expected)
    if not learning(layer):
        return
    toward = torch.randn_like(answer)
    (answer * toward).sum().backward(retain_graph=True)
    ours = gradients(layer)
    layer.zero_grad()
    (expected * toward).sum().backward()
    theirs = gradients(layer)
    # An expert without a token has a gradient of zero where the loop over tokens has none.
    assert ours.keys() >= theirs.keys()
    assert ours.keys() >= {f"experts.{name}" for name in learning(layer.experts)}
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs.get(name, torch.zeros_like(gradient)), rtol=1e-4, atol=1e-4)


@for_every_pair
def test_in_every_pair_every_parameter_learns(router, experts):
    layer = mixed(router, experts)
    # Where all experts answer alike, a router has nothing to learn.
    left = learning(layer.experts if experts in ALIKE else layer)
    if (router, experts) == ("renamed", "unequal"):
        # This router never names the expert whose parameters are these.
        left = {name: parameter for name, parameter in left.items() if not name.startswith("experts.parts.1.")}
    # Several steps with other tokens, so that nobody is idle in all of them.
    for _ in range(6):
        if left:
            layer(torch.randn(4, 9, D), signal(4, 9))[0].square().sum().backward()
        assert all(parameter.grad is not None for parameter in learning(layer.experts).values())
        left = {
            name: parameter for name, parameter in left.items() if parameter.grad is None or not parameter.grad.any()
        }
    assert not left


@for_every_pair
def test_in_every_pair_padding_is_nothing(router, experts):
    layer, mask = mixed(router, experts), torch.tensor([[True, True, False]] * 2)
    answer, _ = layer(torch.randn(2, 3, D).masked_fill(~mask.unsqueeze(-1), torch.nan), signal(2, 3, mask))
    assert answer.isfinite().all()
    assert not answer[~mask].any()
    empty, _ = layer(torch.randn(2, 0, D), signal(2, 0))
    assert empty.shape == (2, 0, answer.shape[-1])
    if answer.requires_grad:
        (answer.sum() + empty.sum()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in layer.parameters())


@for_every_pair
def test_every_pair_is_saved_and_loaded_and_stays_near_in_half_precision(router, experts):
    # Rounded once, so that both precisions compute with the same numbers.
    layer, other = mixed(router, experts).eval().bfloat16().float(), mixed(router, experts).eval()
    state, tokens = layer.state_dict(), torch.randn(2, 4, D).bfloat16()
    other.load_state_dict(load(save(state)) if state else state)
    found = []
    for each, kind in ((layer, torch.float32), (other, torch.float32), (layer, torch.bfloat16)):
        torch.manual_seed(1)
        answer, (routing,) = each.to(kind)(tokens.to(kind), signal(2, 4))
        assert answer.dtype == kind
        found.append((answer.float(), routing.counts))
    (single, chosen), (loaded, _), (half, rounded) = found
    assert torch.equal(single, loaded)
    assert torch.equal(chosen, rounded)
    torch.testing.assert_close(half, single, rtol=0.05, atol=0.1 * (1 + single.abs().max().item()))


@pytest.mark.parametrize("router", sorted(set(NORMALISED) - {"soft"}))
def test_identity_experts_give_back_the_input(router):
    tokens = torch.randn(2, 7, D)
    answer, _ = Mixture(ROUTERS[router](), Identity(E))(tokens, signal(2, 7))
    torch.testing.assert_close(answer, tokens)


@pytest.mark.parametrize("router", sorted(set(NORMALISED) - {"soft"}))
@pytest.mark.parametrize("kind", STACKED)
def test_equal_experts_equal_the_dense_layer(router, kind):
    experts = randomised(EXPERTS[kind]())
    for parameter in experts.parameters():
        parameter.data.copy_(parameter.data[:1].expand_as(parameter))
    tokens = torch.randn(2, 7, D)
    dense = experts(tokens.flatten(0, 1), torch.tensor([14, 0, 0, 0])).unflatten(0, (2, 7))
    torch.testing.assert_close(Mixture(ROUTERS[router](), experts)(tokens, signal(2, 7))[0], dense)


def test_shared_experts_answer_every_token():
    shared = randomised(FeedForward(D, 6, 2))
    layer = Mixture(ROUTERS["mixtral"](), randomised(FeedForward(D, 6, E)), shared)
    tokens = torch.randn(2, 5, D)
    each = [shared(tokens.flatten(0, 1), torch.tensor(counts)).view(2, 5, D) for counts in ((10, 0), (0, 10))]
    routed, (routing,) = Mixture(layer.router, layer.experts)(tokens, signal(2, 5))
    answer, _ = layer(tokens, signal(2, 5))
    torch.testing.assert_close(answer, routed + each[0] + each[1])
    expected = 2 * layer.router.macs(5) + int(routing.counts.sum()) * 96 + 2 * 5 * 2 * 96
    assert layer.macs(routing, tokens.shape) == expected


def test_macs_are_those_of_what_was_active():
    layer = Mixture(
        ComposedRouter(Dot(D, E), [Softmax()], partial(top_k, k=2), [partial(drop, capacity=1)]), EXPERTS["nested"]()
    )
    tokens = torch.randn(3, 5, D)
    _, (routing,) = layer(tokens, Signal())
    assert routing.counts.tolist() == [3] * 4
    assert layer.macs(routing, tokens.shape) == 3 * 5 * D * E + 3 * 2 * (2 * 3 + 4 * 6 + 6 * 9 + 8 * 12)
    soft_layer = Mixture(ROUTERS["soft"](), FeedForward(D, 6, E))
    _, (routing,) = soft_layer(tokens, Signal())
    slots = E * 2
    assert soft_layer.macs(routing, tokens.shape) == 3 * (5 * D * slots + slots * 96 + 2 * slots * 5 * D)


def test_dropped_tokens_get_zero():
    router = ComposedRouter(Dot(D, E), [Softmax()], partial(top_k, k=1), [partial(drop, capacity=1)])
    layer, tokens = Mixture(router, randomised(FeedForward(D, 6, E))), torch.randn(2, 9, D)
    answer, (routing,) = layer(tokens, Signal())
    assert isinstance(routing, Sparse)
    dropped = routing.index[..., 0] == -1
    assert dropped.sum() >= 10
    assert not answer[dropped].any()
    assert answer[~dropped].any(-1).all()


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1), (2, 5)])
@pytest.mark.parametrize("kept", [True, False])
def test_empty_single_and_masked_input(router: str, shape: tuple[int, int], kept: bool):
    layer = Mixture(ROUTERS[router](), randomised(FeedForward(D, 6, E)), randomised(FeedForward(D, 6, 1)))
    tokens, mask = torch.randn(*shape, D), torch.full(shape, kept)
    if not kept:
        tokens.fill_(torch.nan)
    answer, _ = layer(tokens, signal(*shape, mask))
    assert answer.shape == tokens.shape
    assert answer.isfinite().all()
    assert kept or not answer.any()
    answer.sum().backward()
    for parameter in (*layer.experts.parameters(), *layer.parameters()):
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in layer.experts.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("router", ROUTERS)
def test_large_logits_in_half_precision_stay_near_single(router, dtype):
    layer, tokens = Mixture(ROUTERS[router](), FeedForward(D, 6, E)).eval(), torch.randn(2, 7, D).to(dtype)
    for parameter in layer.router.parameters():
        parameter.data.mul_(1e4)
    torch.manual_seed(1)
    half, (routing,) = layer.to(dtype)(tokens, signal(2, 7))
    torch.manual_seed(1)
    single, (again,) = layer.float()(tokens.float(), signal(2, 7))
    assert half.isfinite().all()
    assert torch.equal(routing.counts, again.counts)
    torch.testing.assert_close(half.float(), single, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("router", ["mixtral", "deepseek", "expert_choice", "soft", "hash"])
def test_half_precision_stays_near_single(router, dtype):
    layer, tokens = Mixture(ROUTERS[router](), FeedForward(D, 6, E)).to(dtype), torch.randn(2, 7, D).to(dtype)
    half, (routing,) = layer(tokens, signal(2, 7))
    assert half.dtype == dtype
    single, (again,) = layer.float()(tokens.float(), signal(2, 7))
    torch.testing.assert_close(half.float(), single, rtol=0.05, atol=0.02)
    assert torch.equal(routing.counts, again.counts)


@pytest.mark.parametrize("choice", ONLY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_expert_alone_is_the_dense_layer(choice, dtype):
    layer = Mixture(ONLY[choice](), randomised(FeedForward(D, 6, 1))).to(dtype)
    for tokens in (torch.randn(2, 5, D).to(dtype), torch.randn(1, 1, D).to(dtype), torch.randn(2, 0, D).to(dtype)):
        B, T, _ = tokens.shape
        answer, (routing,) = layer(tokens, Signal(counts=(T,), task=torch.zeros(B, dtype=torch.long)))
        dense = layer.experts(tokens.flatten(0, 1), torch.tensor([B * T])).unflatten(0, (B, T))
        torch.testing.assert_close(answer, dense)
        assert routing.counts.tolist() == [B * T]


def test_router_and_experts_must_agree():
    with pytest.raises(ValueError, match="decides over 4 experts and there are 3"):
        Mixture(ROUTERS["mixtral"](), FeedForward(D, 6, 3))(torch.randn(1, 2, D))
