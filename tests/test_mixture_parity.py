"""Mixtures against independent implementations, weights copied: answers and gradients."""

from functools import partial

import pytest
import torch
from mixtures import D, gradients, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.experts.feedforward import SWIGLU, FeedForward
from nestor.layers.mixture import Mixture
from nestor.routing.adjust import Bias, GroupLimit, Sigmoid, Softmax
from nestor.routing.choose import soft, top_k
from nestor.routing.learned import Dot, Slots
from nestor.routing.refine import renormalise
from nestor.routing.router import ComposedRouter

pytestmark = pytest.mark.usefixtures("one_thread")


def same_gradients(ours: dict[str, Tensor], theirs: nn.Module, names: dict[str, str]) -> None:
    wanted = gradients(theirs)
    assert wanted.keys() == names.keys()
    for foreign, own in names.items():
        torch.testing.assert_close(ours[own].reshape(wanted[foreign].shape), wanted[foreign], rtol=1e-5, atol=1e-5)


def compare(layer: Mixture, foreign: nn.Module, names: dict[str, str]) -> None:
    """Copy the foreign weights, then compare answers and all gradients, that of the tokens too."""
    own = dict(layer.named_parameters())
    assert set(names.values()) == own.keys()
    with torch.no_grad():
        for name, parameter in foreign.named_parameters():
            nn.init.normal_(parameter, std=0.3)
            own[names[name]].copy_(parameter.reshape(own[names[name]].shape))
    tokens = torch.randn(3, 11, 16, requires_grad=True)
    twin = tokens.detach().clone().requires_grad_()
    toward = torch.randn(3, 11, 16)
    ours, theirs = layer(tokens)[0], foreign(twin)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (ours * toward).sum().backward()
    (theirs * toward).sum().backward()
    torch.testing.assert_close(tokens.grad, twin.grad, rtol=1e-5, atol=1e-5)
    same_gradients(gradients(layer), foreign, names)


@pytest.mark.parametrize("experts", [4, 8])
def test_parity_with_mixtral(experts):
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=16, intermediate_size=12, num_local_experts=experts, num_experts_per_tok=2, hidden_act="silu"
    )
    config._experts_implementation = "eager"
    layer = Mixture(
        ComposedRouter(Dot(16, experts), [Softmax()], partial(top_k, k=2), [renormalise]),
        FeedForward(16, 12, experts, activation=SWIGLU, bias=False),
    )
    names = {
        "gate.weight": "router.score.weight",
        "experts.gate_up_proj": "experts.inward",
        "experts.down_proj": "experts.outward",
    }
    compare(layer, MixtralSparseMoeBlock(config), names)


def test_parity_with_deepseek_v3():
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=16,
        moe_intermediate_size=12,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    config._experts_implementation = "eager"
    bias = Bias(8)
    adjustments = [Sigmoid(), bias, GroupLimit(groups=4, keep=2)]
    layer = Mixture(
        ComposedRouter(Dot(16, 8), adjustments, partial(top_k, k=3), [partial(renormalise, scale=2.5)]),
        FeedForward(16, 12, 8, activation=SWIGLU, bias=False),
        FeedForward(16, 12, 1, activation=SWIGLU, bias=False),
    )
    foreign = DeepseekV3MoE(config)
    bias.bias.copy_(torch.randn(8) * 0.3)
    foreign.gate.e_score_correction_bias.copy_(bias.bias)
    # The shared network keeps gate and value apart; seen as one matrix they are ours.
    joined = SharedTogether(foreign)
    names = {
        "gate.weight": "router.score.weight",
        "experts.gate_up_proj": "experts.inward",
        "experts.down_proj": "experts.outward",
        "inward": "shared.inward",
        "outward": "shared.outward",
    }
    compare(layer, joined, names)


class SharedTogether(nn.Module):
    """DeepSeek's block with the matrices of its shared network as two parameters."""

    def __init__(self, block: nn.Module):
        super().__init__()
        shared = block.get_submodule("shared_experts")
        self.inward = nn.Parameter(torch.zeros(24, 16))
        self.outward = nn.Parameter(torch.zeros(16, 12))
        self.gate, self.experts = block.get_submodule("gate"), block.get_submodule("experts")
        self.block = [block]
        self.shared = [shared]

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.inward.chunk(2)
        weights = {"gate_proj.weight": gate, "up_proj.weight": value, "down_proj.weight": self.outward}
        given = {f"shared_experts.{name}": weight for name, weight in weights.items()}
        return torch.func.functional_call(self.block[0], given, (tokens,))


def test_parity_with_soft_moe_as_published():
    layer = Mixture(ComposedRouter(Slots(D, 3, slots=2), [], partial(soft, slots=2)), randomised(FeedForward(D, 6, 3)))
    x = torch.randn(2, 7, D)
    slots = layer.router.get_parameter("score.phi")
    phi = slots.T / slots.T.norm(dim=0, keepdim=True)
    logits = (x / x.norm(dim=-1, keepdim=True)) @ phi
    inputs = logits.softmax(1).mT @ x
    answers = [
        layer.experts(inputs[:, 2 * e : 2 * e + 2].flatten(0, 1), 4 * F.one_hot(torch.tensor(e), 3)) for e in range(3)
    ]
    outputs = torch.cat([answer.view(2, 2, D) for answer in answers], 1)
    torch.testing.assert_close(layer(x)[0], logits.softmax(-1) @ outputs)
