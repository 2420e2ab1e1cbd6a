"""What users of mixtures ask for: dials between calls, experts of any width, and processes that wait for nobody."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import mixture_worker
import pytest
import torch
from mixtures import D, E, randomised
from safetensors.torch import load_file

from nestor.experts.feedforward import SWIGLU, FeedForward
from nestor.experts.joined import Joined
from nestor.layers.mixture import Mixture
from nestor.routing.adjust import Softmax
from nestor.routing.choose import expert_choice, threshold, top_k, top_p
from nestor.routing.learned import Dot
from nestor.routing.refine import renormalise
from nestor.routing.router import ComposedRouter
from nestor.types import Signal, Sparse

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


def test_experts_of_unequal_width_cost_what_their_tokens_met():
    experts = Joined([FeedForward(D, 2, 1), FeedForward(D, 16, 2), FeedForward(D, 5, 1, activation=SWIGLU)])
    layer = Mixture(ComposedRouter(Dot(D, E), [Softmax()], partial(top_k, k=2), [renormalise]), randomised(experts))
    answer, (routing,) = layer(torch.randn(2, 9, D))
    costs = torch.tensor([2 * 2 * D, 2 * 16 * D, 2 * 16 * D, 3 * 5 * D])
    assert layer.macs(routing, answer.shape) == int((routing.counts * costs).sum()) + 18 * D * E
    answer.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_two_processes_with_idle_experts_end_with_the_mean_gradient(tmp_path: Path):
    here = Path(mixture_worker.__file__)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parent.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(here)]
    subprocess.run([*command, str(tmp_path)], check=True, env=environment, timeout=240, capture_output=True)
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    expected: dict[str, torch.Tensor] = {}
    for rank in (0, 1):
        model = mixture_worker.model()
        mixture_worker.loss(model, rank).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            expected[name] = expected.get(name, 0) + parameter.grad / 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[0][name], gradient)
        assert torch.equal(found[0][name], found[1][name])
    experts = expected["1.layer.experts.inward"]
    assert [bool(part.any()) for part in experts] == [True, True, True, False]
    # The state is that of one process.
    assert found[0].keys() == dict(mixture_worker.model().named_parameters()).keys()


def test_the_worker_routes_as_it_says():
    model = mixture_worker.model()
    slot = model.get_submodule("1.layer")
    assert isinstance(slot, Mixture)
    for rank, wanted in ((0, [6, 0, 0, 0]), (1, [0, 4, 2, 0])):
        routing = slot.router(mixture_worker.tokens(rank), Signal())
        assert isinstance(routing, Sparse)
        assert routing.counts.tolist() == wanted
