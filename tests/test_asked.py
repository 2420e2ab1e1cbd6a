"""What users of mixtures ask for: dials between calls, experts of any width, and processes that wait for nobody."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mixture_worker
import pytest
import torch
from mixtures import D, E, randomised
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from nestor.experts.adapted import Adapted
from nestor.experts.cheap import Constant, Modulation
from nestor.experts.feedforward import GELU, SWIGLU, Activation, FeedForward
from nestor.experts.gated import Gated, Scaled
from nestor.experts.joined import Joined
from nestor.experts.linear import Linear
from nestor.experts.lowrank import Bottleneck, Kronecker, LoRA
from nestor.experts.partly import PartlyShared
from nestor.experts.rounded import Rounded
from nestor.layers.mixture import Mixture
from nestor.ops import grouped
from nestor.routing.adjust import Softmax
from nestor.routing.choose import expert_choice, threshold, top_k, top_p
from nestor.routing.learned import Dot
from nestor.routing.refine import renormalise
from nestor.routing.router import ComposedRouter
from nestor.types import Experts, Signal, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

DIALS = {
    "k": [partial(top_k, k=k) for k in (1, 2, 4)],
    "threshold": [partial(threshold, least=least) for least in (0.1, 0.4)],
    "share": [partial(top_p, p=p) for p in (0.3, 0.9)],
    "capacity": [partial(expert_choice, factor=factor) for factor in (0.5, 2.0)],
}


@pytest.mark.parametrize("dial", DIALS)
def test_a_dial_is_turned_between_calls_on_the_same_weights(dial: str):
    def made(choice) -> Mixture:
        router = ComposedRouter(Dot(D, E), [Softmax()], choice, [renormalise])
        return Mixture(router, randomised(FeedForward(D, 6, E)))

    layer, tokens, spent = made(DIALS[dial][0]), torch.randn(2, 9, D), []
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for choice in DIALS[dial]:
        assert isinstance(layer.router, ComposedRouter)
        layer.router.choice = choice
        answer, (routing,) = layer(tokens)
        fresh = made(choice)
        fresh.load_state_dict(state)
        assert torch.equal(answer, fresh(tokens)[0])
        spent.append(layer.macs(routing, tokens.shape))
    assert len(set(spent)) == len(spent)
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("experts", [4, 8])
@pytest.mark.parametrize("activation", [GELU, SWIGLU])
def test_compiled_experts_serve_every_turn_of_a_dial_with_one_graph(experts: int, activation: Activation):
    torch.compiler.reset()
    torch.manual_seed(0)
    router = ComposedRouter(Dot(D, experts), [Softmax()], DIALS["k"][0], [renormalise])
    layer = Mixture(router, randomised(FeedForward(D, 8, experts, activation=activation))).double()
    twin, counter = copy.deepcopy(layer), CompileCounter()
    layer.experts.compile(backend=counter, dynamic=True, fullgraph=True)
    turns = [choice for choices in DIALS.values() for choice in choices]
    for choice in (*turns, *turns):
        for each in (layer, twin):
            assert isinstance(each.router, ComposedRouter)
            each.router.choice = choice
            each.zero_grad()
        tokens = torch.randn(2, 9, D, dtype=torch.double)
        answers = [each(tokens)[0] for each in (layer, twin)]
        torch.testing.assert_close(*answers)
        for answer in answers:
            answer.square().sum().backward()
        for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1
    router.choice = partial(threshold, least=2.0)
    answer, _ = layer(torch.randn(2, 9, D, dtype=torch.double))
    assert not answer.any()
    answer.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.experts.parameters())
    assert counter.frame_count <= 2


def test_experts_of_unequal_width_cost_what_their_tokens_met():
    experts = Joined([FeedForward(D, 2, 1), FeedForward(D, 16, 2), FeedForward(D, 5, 1, activation=SWIGLU)])
    layer = Mixture(ComposedRouter(Dot(D, E), [Softmax()], partial(top_k, k=2), [renormalise]), randomised(experts))
    answer, (routing,) = layer(torch.randn(2, 9, D))
    costs = torch.tensor([2 * 2 * D, 2 * 16 * D, 2 * 16 * D, 3 * 5 * D])
    assert layer.macs(routing, answer.shape) == int((routing.counts * costs).sum()) + 18 * D * E
    answer.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote of mixtures of few and of many experts: gradients, and states after some steps."""
    here, folder = Path(mixture_worker.__file__), tmp_path_factory.mktemp("processes")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parent.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(here)]
    subprocess.run([*command, str(folder)], check=True, env=environment, timeout=240, capture_output=True)
    return folder


@pytest.mark.parametrize("experts", mixture_worker.EXPERTS)
def test_two_processes_with_idle_experts_end_with_the_mean_gradient(written: Path, experts: int):
    found = [load_file(written / f"{experts}.{rank}.gradients") for rank in (0, 1)]
    expected: dict[str, torch.Tensor] = {}
    for rank in (0, 1):
        model = mixture_worker.model(experts)
        mixture_worker.loss(model, rank).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            expected[name] = expected.get(name, 0) + parameter.grad / 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[0][name], gradient)
        assert torch.equal(found[0][name], found[1][name])
    inward = expected["1.layer.experts.inward"]
    assert [bool(part.any()) for part in inward] == [True, True, True] + [False] * (experts - 3)


@pytest.mark.parametrize("experts", mixture_worker.EXPERTS)
def test_a_state_does_not_depend_on_how_many_processes_wrote_it(written: Path, tmp_path: Path, experts: int):
    two, other = (load_file(written / f"{experts}.{rank}.state") for rank in (0, 1))
    mixture_worker.trained(mixture_worker.model(experts), [0, 1], tmp_path / "state")
    one = load_file(tmp_path / "state")
    start = mixture_worker.model(experts).state_dict()
    assert two.keys() == one.keys() == start.keys()
    for name, tensor in one.items():
        assert torch.equal(two[name], other[name]), name
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)
        assert not torch.equal(tensor, start[name]), name
    # And what two wrote is read by one.
    mixture_worker.model(experts).load_state_dict(two)


MANY: dict[str, Callable[[int], Experts]] = {
    "feed-forward": lambda E: FeedForward(D, 8, E),
    "gated halves": lambda E: FeedForward(D, 8, E, activation=SWIGLU, bias=False),
    "rounded": lambda E: Rounded(D, 8, E),
    "partly shared": lambda E: PartlyShared(D, 8, E, own=4),
    "linear": lambda E: Linear(D, E),
    "low rank": lambda E: LoRA(D, 4, E),
    "bottleneck": lambda E: Bottleneck(D, 4, E),
    "kronecker": lambda E: Kronecker(D, 2, 3, E, out=8),
    "adapted": lambda E: Adapted(FeedForward(D, 8, E), 4),
    "gated": lambda E: Gated(FeedForward(D, 8, E), D),
    "scaled": lambda E: Scaled(FeedForward(D, 8, E)),
    "modulation": lambda E: Modulation(D, E),
    "constant": lambda E: Constant(D, E),
}


def operators(experts: Experts) -> int:
    """How many operators a step forwards and backwards takes."""
    E = len(experts.costs)
    layer = Mixture(ComposedRouter(Dot(D, E), [Softmax()], partial(top_k, k=2), [renormalise]), experts)

    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += 1
            return func(*args, **(kwargs or {}))

    with Count() as count:
        layer(torch.randn(2, 40, D))[0].square().sum().backward()
    return count.seen


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", MANY)
def test_no_loop_visits_many_experts_one_by_one(kind: str, native: bool, monkeypatch: pytest.MonkeyPatch):
    if not native:
        monkeypatch.setattr(grouped, "has_native", lambda rows, weight: False)
    monkeypatch.setattr(grouped, "loop", None)
    assert operators(MANY[kind](64)) == operators(MANY[kind](8))


def test_the_worker_routes_as_it_says():
    model = mixture_worker.model()
    slot = model.get_submodule("1.layer")
    assert isinstance(slot, Mixture)
    for rank, wanted in ((0, [6, 0, 0, 0]), (1, [0, 4, 2, 0])):
        routing = slot.router(mixture_worker.tokens(rank), Signal())
        assert isinstance(routing, Sparse)
        assert routing.counts.tolist() == wanted
