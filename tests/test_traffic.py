"""Traffic against values that can be checked by hand, and routers of transformers against the networks themselves."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import ROUTERS, D, E, signal
from torch.nn import functional as F

from nestor.measure import foreign
from nestor.measure.draw_traffic import draw_classes, draw_loads, draw_overlap
from nestor.measure.trace import Watch, save_trace
from nestor.measure.traffic import (
    by_class,
    divergence,
    information,
    normalised_information,
    overlap,
    shares,
    traffic,
)
from nestor.routing.losses import switch
from nestor.types import NOBODY, Origin, Routing, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")


def chosen(*rows: list[int], experts: int = 4) -> Sparse:
    """One item whose tokens name these experts, each with certainty."""
    index = torch.tensor([[row] if isinstance(row, int) else row for row in rows]).unsqueeze(0)
    scores = F.one_hot(index[..., 0].clamp_min(0), experts).float()
    return Sparse(scores, index, torch.ones(index.shape))


def test_traffic_by_hand():
    found = traffic(chosen([0, 1], [0, 2], [0, NOBODY], [NOBODY, NOBODY]))
    assert found.load.tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6, 0])
    assert found.importance.tolist() == [1, 0, 0, 0]
    assert found.tokens == 4
    assert found.decided == 0
    assert found.even == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 6)) / math.log(4))
    assert found.heaviest == pytest.approx(8 / 3)
    assert found.idle() == (3,)
    assert found.idle(0.7) == (1, 2, 3)
    both = traffic([chosen([0], [1]), chosen([2], [3])])
    assert both.load.tolist() == [0.25] * 4
    assert both.even == pytest.approx(1)
    masked = traffic(chosen([0], [1], [2]), torch.tensor([[True, True, False]]))
    assert (masked.load.tolist(), masked.tokens) == ([0.5, 0.5, 0, 0], 2)
    undecided = Sparse(torch.full((1, 2, 4), 0.25), torch.tensor([[[0], [1]]]), torch.ones(1, 2, 1))
    assert traffic(undecided).decided == pytest.approx(1)


def test_what_a_capacity_refused_is_counted():
    part = chosen([0], [NOBODY], [1], [NOBODY])
    wanted = torch.tensor([[[0], [0], [1], [0]]])
    dropped = Sparse(part.scores, part.index, part.weight, Origin(part.scores, part.scores, wanted))
    assert traffic(dropped).dropped == 0.5
    assert traffic(part).dropped == 0


@pytest.mark.parametrize("name", ROUTERS)
def test_shares_of_any_decision_add_up_to_one_for_each_served_token(name: str):
    routing = ROUTERS[name]()(torch.randn(2, 7, D), signal(2, 7))
    total = shares(routing).sum(-1)
    served = torch.ones(2, 7) if not isinstance(routing, Sparse) else (routing.index != NOBODY).any(-1).float()
    torch.testing.assert_close(total, served)
    found = traffic(routing)
    assert found.load.shape == (E,)
    assert float(found.load.sum()) == pytest.approx(1, abs=1e-5)
    assert float(found.importance.sum()) == pytest.approx(1, abs=1e-5)
    assert 0 <= found.decided <= 1 + 1e-6
    assert 0 <= found.even <= 1 + 1e-6


def test_experts_by_class_and_their_information():
    routing = Sparse(torch.ones(3, 2, 3), torch.tensor([[[0], [0]], [[1], [1]], [[0], [2]]]), torch.ones(3, 2, 1))
    table = by_class(routing, torch.tensor([0, 1, 0]), 2)
    assert table.tolist() == [[3, 0, 1], [0, 2, 0]]
    of_tokens = by_class([routing], [torch.tensor([[0, 1], [1, 0], [-1, 0]])], 2)
    assert of_tokens.tolist() == [[1, 1, 1], [1, 1, 0]]
    # Which expert serves tells the class for sure.
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert information(table) == pytest.approx(entropy)
    assert information(torch.ones(3, 4)) == pytest.approx(0, abs=1e-9)
    assert normalised_information(torch.eye(3)) == pytest.approx(1)
    assert normalised_information(torch.ones(3, 4)) == pytest.approx(0, abs=1e-9)
    assert normalised_information(torch.zeros(3, 4)) == 0
    assert information(torch.tensor([[3.0, 1.0], [1.0, 3.0]])) == pytest.approx(
        2 * 3 / 8 * math.log(3 / 8 / 0.25) + 2 / 8 * math.log(1 / 8 / 0.25)
    )


def test_layers_are_compared_by_what_one_tells_of_the_other():
    first = chosen([0], [0], [1], [1])
    renamed, other, nobody = chosen([3], [3], [2], [2]), chosen([0], [1], [0], [1]), chosen(*[[NOBODY]] * 4)
    found = overlap([first, renamed, other, nobody])
    expected = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])) == pytest.approx(math.log(2))
    assert divergence(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 6.0])) == pytest.approx(0, abs=1e-12)


def test_empty_and_masked_decisions_are_zeros():
    for tokens in (0, 3):
        routing = ROUTERS["mixtral"]()(torch.randn(2, tokens, D), signal(2, tokens))
        mask = torch.zeros(2, tokens, dtype=torch.bool)
        found = traffic(routing, mask)
        assert found.load.tolist() == [0] * E
        assert (found.tokens, found.dropped, found.decided) == (0, 0, 0)
        assert not by_class(routing, torch.tensor([0, 1]), 2, mask).any()


def test_dead_experts_are_told_once_while_training():
    watch = Watch(steps=3, least=0.1)
    alive, dying = chosen([0], [1], [2], [3]), chosen([0], [1], [2], [2])
    for _ in range(2):
        watch.see([alive, dying])
    assert watch.dead() == ()
    with pytest.warns(UserWarning, match="expert 3 of layer 1 got at most 10% of an even share in 3 steps"):
        watch.see([alive, dying])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.see([alive, dying])
    assert watch.dead() == ((1, 3),)
    assert watch.loads()[1].tolist() == [0.25, 0.25, 0.5, 0]
    for _ in range(3):
        watch.see([alive, alive])
    assert watch.dead() == ()


def language_model(kind: str, **changes):
    import transformers

    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    }
    config = getattr(transformers, f"{kind}Config")(**sizes, **changes)
    config._experts_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "gate.weight" in name:
            torch.nn.init.normal_(parameter)
    return model


DEEPSEEK = {
    "moe_intermediate_size": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 0,
}
FAMILIES = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": False},
    "Qwen3Moe": {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "norm_topk_prob": True},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
    "DeepseekV2": DEEPSEEK | {"topk_method": "group_limited_greedy"},
    "DeepseekV3": DEEPSEEK | {"norm_topk_prob": True},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_routers_of_transformers_are_read_as_they_decided(kind: str):
    model = language_model(kind, **FAMILIES[kind])
    gates = [part for name, part in model.named_modules() if name.endswith("mlp.gate")]
    for gate in gates:
        if hasattr(gate, "e_score_correction_bias"):
            gate.e_score_correction_bias.normal_(std=0.3)
    decided = []
    for gate in gates:
        gate.register_forward_hook(lambda part, inputs, output: decided.append(output[1:]))
    ids, mask = torch.randint(0, 40, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    output = model(input_ids=ids, output_router_logits=True)
    layers = foreign.routings(model, output, mask)
    assert len(layers) == len(decided) == 2
    for ours, (weight, index) in zip(layers, decided, strict=True):
        # The family may name a token's experts in any order.
        order, theirs = ours.index.flatten(0, 1).sort(-1), index.sort(-1)
        assert torch.equal(order.values, theirs.values)
        torch.testing.assert_close(
            ours.weight.flatten(0, 1).gather(-1, order.indices), weight.float().gather(-1, theirs.indices)
        )
    switch(layers[0], mask).backward()
    gradient = gates[0].weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    mask[:, 5:] = False
    assert traffic(foreign.routings(model, output, mask)[1], mask).tokens == 10


def test_what_cannot_be_read_is_refused():
    model = language_model("Mixtral", **FAMILIES["Mixtral"])
    output = model(input_ids=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"router logits of 3 tokens; got None\. Call with output_router_logits=True"):
        foreign.routings(model, output, torch.ones(1, 3, dtype=torch.bool))
    model.config.model_type = "dense"
    with pytest.raises(ValueError, match=r"routers can be read of mixtral, .*; got 'dense'"):
        foreign.routings(model, output, torch.ones(1, 3, dtype=torch.bool))


def test_figures_show_their_numbers():
    layers = [traffic(chosen([0], [1], [2], [3])), traffic(chosen([0], [0], [0], [1]))]
    (axes,) = draw_loads(layers, ("block 4", "block 5")).axes
    points = [np.asarray(part.get_offsets()) for part in axes.collections]
    heights = [sorted(each[:, 1].tolist()) for each in points if len(each) == 4]
    assert heights == [[1, 1, 1, 1], [0, 0, 1, 3]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["block 4", "block 5"]
    assert any("2 idle" in text.get_text() for text in axes.texts)
    (axes,) = draw_classes(torch.tensor([[3.0, 1.0], [0.0, 4.0]]), ("bag", "boot")).axes
    assert [text.get_text() for text in axes.texts] == ["0.75", "0.25", "0.00", "1.00"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bag", "boot"]
    (axes,) = draw_overlap(torch.eye(3)).axes
    assert axes.get_title(loc="left") == "What one layer's choice tells of another's"
    (axes,) = draw_classes(torch.ones(2, 100), ("bag", "boot")).axes
    assert not axes.texts


class Foreign(Routing):
    scores = torch.ones(1, 1, 2)

    @property
    def counts(self):
        return torch.ones(2)

    def dispatch(self, tokens):
        return tokens

    def combine(self, rows):
        return rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: traffic([]), "over the same experts; got none"),
        (lambda: traffic([chosen([0]), chosen([0], experts=3)]), r"over the same experts; got \[3, 4\]"),
        (lambda: shares(Foreign()), "known of Sparse and Soft decisions; got Foreign"),
        (lambda: save_trace(Path("none"), {"a": [Foreign()]}), "holds Sparse and Soft decisions; got Foreign"),
        (lambda: by_class(chosen([0]), [], 2), "needs its labels; got 1 and 0"),
        (
            lambda: by_class(chosen([0]), torch.tensor([2]), 2),
            r"labels must be \(1,\) or \(1, 1\), below 2; got \(1,\)",
        ),
        (lambda: overlap([chosen([0]), chosen([0], [1])]), r"the same tokens; got \[1, 2\]"),
        (lambda: Watch(steps=0), "steps must be at least 1"),
        (lambda: draw_loads([]), "loads need a layer"),
        (lambda: draw_classes(torch.ones(2, 2), ("one",)), "every class needs a name; got 1 for 2"),
        (lambda: draw_overlap(torch.ones(2, 3)), r"a square of layers; got \(2, 3\)"),
    ],
)
def test_errors_name_rule_value_and_repair(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_layers_stay_the_same_while_watching():
    watch = Watch()
    watch.see([chosen([0])])
    with pytest.raises(ValueError, match="layers must stay the same; got 2 after 1"):
        watch.see([chosen([0]), chosen([0])])
