"""Mixtures of transformers, their experts in one tensor for each map, read as ours and adapted expert by expert."""

import copy
from typing import Any

import pytest
import torch
from test_traffic import FAMILIES, language_model
from torch import nn

from nestor.experts.adapted import Adapted
from nestor.experts.feedforward import FeedForward
from nestor.layers.mixture import Mixture
from nestor.layers.slot import Slot, recording
from nestor.surgery.block import mixture
from nestor.surgery.replace import receipt, replace

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = "model.layers.*.mlp"


def randomised(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = language_model(kind, **FAMILIES[kind])
    for name, tensor in model.state_dict().items():
        if "mlp" in name:
            tensor.normal_(std=0.3)
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_block_of_every_family_is_read_exactly(kind: str):
    model, ids = randomised(kind), torch.randint(0, 40, (2, 7))
    new = replace(model, NAMES, mixture)
    exact = receipt(model, new, ids)
    assert exact.error < 1e-5
    # A correction of the choice is no parameter in either.
    assert exact.after == exact.before
    with torch.no_grad(), recording() as record:
        new(ids)
    assert [routing.scores.shape[:2] for routing in record.routings] == [(2, 7)] * 2
    slots = [part for part in new.modules() if isinstance(part, Slot)]
    old: list[Any] = [part.experts for name, part in model.named_modules() if name.endswith(".mlp")]
    for slot, experts in zip(slots, old, strict=True):
        assert isinstance(slot.layer.experts, FeedForward)
        assert torch.equal(slot.layer.experts.inward, experts.gate_up_proj)


def adapted(block: nn.Module) -> Mixture:
    whole = mixture(block)
    assert isinstance(whole.experts, FeedForward)
    return Mixture(whole.router, Adapted(whole.experts, rank=3, which=(2,)), whole.shared)


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
def test_one_expert_of_a_tensor_is_adapted_and_no_other_changes(kind: str):
    model, ids = randomised(kind), torch.randint(0, 40, (4, 9))
    for name, tensor in model.state_dict().items():
        if name.endswith("correction_bias"):
            # So that somebody chooses it.
            tensor[2] += 1
    new = replace(model, NAMES, adapted)
    assert receipt(model, new, ids).error < 1e-5
    assert receipt(replace(model, NAMES, mixture), new, ids).error == 0
    # As with peft, only additions learn.
    added = [name for name, _ in new.named_parameters() if ".experts.inward." in name or ".experts.outward." in name]
    assert added
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name in added)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in new.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        new(input_ids=ids, labels=ids)["loss"].backward()
        optimizer.step()
    changed = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(added)
    for slot in (part for part in new.modules() if isinstance(part, Slot)):
        experts = slot.layer.experts
        assert isinstance(experts, Adapted)
        merged = experts.merged()
        moved = (merged.inward != experts.experts.inward).flatten(1).any(-1).tolist()
        assert moved == [expert == 2 for expert in range(len(moved))]
    assert receipt(model, new, ids).error > 1e-4


def test_half_precision_and_other_activations_are_read():
    block = randomised("Mixtral").get_submodule("model.layers.0.mlp")
    block.get_submodule("experts").act_fn = nn.GELU()
    found, tokens = mixture(block.train()), torch.randn(2, 5, 16)
    assert found.training
    torch.testing.assert_close(found(tokens)[0], block(tokens), rtol=1e-5, atol=1e-5)
    assert mixture(copy.deepcopy(block).bfloat16()).experts.inward.dtype == torch.bfloat16


class Odd(nn.Module):
    """Answers twice what its parts say."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.gate, self.experts = block.get_submodule("gate"), block.get_submodule("experts")
        self.block = block

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * self.block(tokens)


def test_what_is_no_such_block_is_refused():
    with pytest.raises(ValueError, match=r"needs a gate with weights.*; got Linear\. Build"):
        mixture(nn.Linear(3, 3))
    odd = Odd(randomised("Mixtral").get_submodule("model.layers.0.mlp"))
    with pytest.raises(ValueError, match=r"no reading of Odd gives its answers; the nearest is off by 0\.5"):
        mixture(odd)
