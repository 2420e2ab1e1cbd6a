"""Parity with soft-moe-pytorch, which others use for Soft MoE: weights copied, answers and gradients the same."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.experts.feedforward import GELU, Activation, FeedForward
from nestor.layers.mixture import Mixture
from nestor.routing.choose import soft
from nestor.routing.learned import Slots
from nestor.routing.router import ComposedRouter
from nestor.types import Signal

pytestmark = pytest.mark.usefixtures("one_thread")

D, E, C = 12, 3, 2
SCALE = 1.7
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def geglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_answers_and_gradients_are_those_of_soft_moe_pytorch(gated: bool, masked: bool):
    from soft_moe_pytorch import SoftMoE

    theirs: Any = SoftMoE(
        D, num_experts=E, num_slots=C, expert_mult=2, geglu=gated, offload_unused_experts_to_cpu=False
    )
    with torch.no_grad():
        for parameter in theirs.experts.parameters():
            parameter.normal_(std=0.5)
        # Their norm multiplies a unit vector by sqrt(D) and gamma: now it leaves it one, times our scale for slots.
        theirs.norm.gamma.fill_(D**-0.5)
        theirs.slot_norm.gamma.fill_(SCALE * D**-0.5)
    maps = [[part for part in expert if isinstance(part, nn.Linear)] for expert in theirs.experts.experts]
    up, down = zip(*maps, strict=True)

    def stacked(parts: tuple[nn.Linear, ...], name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts])

    experts = FeedForward.of(
        stacked(up, "weight"),
        stacked(down, "weight"),
        stacked(up, "bias"),
        stacked(down, "bias"),
        activation=Activation(fan=2, apply=geglu) if gated else GELU,
    )
    slots = Slots(D, E, slots=C)
    with torch.no_grad():
        slots.phi.copy_(theirs.slot_embeds.flatten(0, 1))
        slots.scale.fill_(SCALE)
    ours = Mixture(ComposedRouter(slots, [], partial(soft, slots=C)), experts)
    tokens = torch.randn(4, 7, D, requires_grad=True)
    twin = tokens.detach().clone().requires_grad_()
    mask = torch.ones(4, 7, dtype=torch.bool)
    if masked:
        mask[1, 4:] = mask[2, 1:] = False
    # Theirs mixes normed tokens, ours the tokens themselves; and what it answers to padding is not defined.
    answer, _ = ours(F.normalize(tokens, dim=-1), Signal(mask=mask))
    wanted = theirs(twin, mask=mask if masked else None)
    close(answer[mask], wanted[mask])
    toward = torch.randn(4, 7, D) * mask.unsqueeze(-1)
    (answer * toward).sum().backward()
    (wanted * toward).sum().backward()
    close(tokens.grad, twin.grad)
    assert slots.phi.grad is not None
    close(slots.phi.grad, theirs.slot_embeds.grad.flatten(0, 1))
    close(slots.scale.grad, theirs.slot_norm.gamma.grad.sum() * D**-0.5)
    for ours_now, parts, name in (
        (experts.inward, up, "weight"),
        (experts.outward, down, "weight"),
        (experts.inward_bias, up, "bias"),
        (experts.outward_bias, down, "bias"),
    ):
        assert ours_now is not None
        gradient = torch.stack([getattr(part, name).grad for part in parts])
        close(ours_now.grad, gradient)
