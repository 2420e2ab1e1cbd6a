"""Mixture classifiers of transformers behind the same engine: top k is the budget."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import infer, png, refused, until_ready
from fastapi.testclient import TestClient
from nets import small
from test_serving_engine import PATIENT, WAIT, ask
from torch import nn

from nestor.models.saved import save_model
from nestor.serving.engine import Engine
from nestor.serving.http import application
from nestor.serving.mixture import ServedMixture
from nestor.serving.network import ServedViT
from nestor.serving.open import open_served, stamp

LENGTH, VOCABULARY, PAD = 6, 40, 0
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 3,
    "pad_token_id": PAD,
    "id2label": {0: "no", 1: "yes", 2: "perhaps"},
    "label2id": {"no": 0, "yes": 1, "perhaps": 2},
}


def mixture(kind: str = "mixtral", **changes: Any) -> nn.Module:
    """A small network with random weights; each token is served by 3 of 4 experts."""
    import transformers

    torch.manual_seed(0)
    if kind == "mixtral":
        fields: dict[str, Any] = COMMON | {"num_local_experts": 4} | changes
        return transformers.MixtralForSequenceClassification(transformers.MixtralConfig(**fields)).eval()
    fields = COMMON | {"num_experts": 4, "moe_intermediate_size": 12, "decoder_sparse_step": 1, "mlp_only_layers": []}
    if kind == "qwen2":
        fields |= {"shared_expert_intermediate_size": 8} | changes
        return transformers.Qwen2MoeForSequenceClassification(transformers.Qwen2MoeConfig(**fields))
    fields |= {"head_dim": 8} | changes
    return transformers.Qwen3MoeForSequenceClassification(transformers.Qwen3MoeConfig(**fields))


def tokens(rows: int, seed: int = 0) -> torch.Tensor:
    """Sequences of different lengths, padded at the end."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(1, VOCABULARY, (rows, LENGTH), generator=generator)
    for row in range(rows):
        found[row, LENGTH - row % 3 :] = PAD
    return found


@pytest.mark.parametrize("kind", ["mixtral", "qwen2", "qwen3"])
def test_a_budget_is_the_same_network_built_with_fewer_experts_for_a_token(kind: str):
    served = ServedMixture(mixture(kind), length=LENGTH)
    assert served.budgets == (0.34, 0.67, 1.0)
    assert served.labels == ("no", "yes", "perhaps")
    items, found = tokens(5), []
    for k, budget in ((3, 1.0), (1, 0.34), (2, 0.67), (3, 1.0)):
        with torch.no_grad():
            other: Any = mixture(kind, num_experts_per_tok=k).eval()
            expected = other(input_ids=items, attention_mask=(items != PAD).long()).logits
        answers = served.run(items, budget)
        assert torch.equal(answers.logits, expected)
        assert answers.experts is None
        found.append(answers.logits)
    assert torch.equal(found[0], found[3])
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])


def test_the_engine_batches_sequences_of_any_length_and_keeps_budgets_apart():
    served = ServedMixture(mixture(), length=LENGTH)
    engine = Engine(served, PATIENT, batch=4)
    engine.start()
    wanted = [(tokens(1, seed), served.budgets[seed % 3]) for seed in range(9)]
    futures = [ask(engine, items, floor=budget, ceiling=budget) for items, budget in wanted]
    answers = [future.result(WAIT) for future in futures]
    # What runs a network sets its dial, so that only one may run it at a time.
    for (items, budget), answer in zip(wanted, answers, strict=True):
        assert answer.budget == budget
        torch.testing.assert_close(answer.logits, served.run(items, budget).logits, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"input_ids must be of shape \(1, 6\); got \(1, 5\)"):
        engine.submit(engine.order(1), tokens(1)[:, :5])
    assert engine.drain(WAIT)


def test_a_sequence_of_padding_alone_has_an_answer():
    served = ServedMixture(mixture(), length=LENGTH)
    assert served.run(torch.zeros(2, LENGTH, dtype=torch.long), 1.0).logits.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"budgets": (0.5, 1.0)}, r"budgets must be among 0.34, 0.67, 1, .*; got \(0.5, 1.0\)"),
        ({}, {"budgets": ()}, r"budgets must be among .*; got \(\)"),
        ({}, {"length": 33}, r"length must lie in \[1, 32\] for this network; got 33"),
        ({"pad_token_id": None}, {}, "needs a padding id"),
    ],
)
def test_what_cannot_be_served(changes: dict, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ServedMixture(mixture(**changes), length=options.get("length", LENGTH), budgets=options.get("budgets"))


def test_a_network_without_mixtures_is_refused():
    import transformers

    dense = transformers.BertForSequenceClassification(
        transformers.BertConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(ValueError, match="like those of Mixtral and Qwen; got BertForSequenceClassification"):
        ServedMixture(dense, length=LENGTH)


def test_a_folder_says_what_it_holds(tmp_path: Path):
    network: Any = mixture()
    network.save_pretrained(tmp_path / "mixture")
    found = open_served(tmp_path / "mixture", size=LENGTH, budgets=(0.34, 1.0))
    assert found.budgets == (0.34, 1.0)
    direct = ServedMixture(network, length=LENGTH)
    assert torch.equal(found.run(tokens(3), 0.34).logits, direct.run(tokens(3), 0.34).logits)
    save_model(small(), tmp_path / "elastic")
    before = stamp(tmp_path / "elastic")
    assert isinstance(open_served(tmp_path / "elastic", budgets=(1.0,)), ServedViT)
    assert stamp(tmp_path / "elastic") == before
    save_model(small(seed=1), tmp_path / "elastic")
    assert stamp(tmp_path / "elastic") != before
    assert stamp(tmp_path / "nothing") == ""
    with pytest.raises(FileNotFoundError):
        open_served(tmp_path / "nothing")
    for kind in ("mixture", "elastic"):
        half: Any = open_served(tmp_path / kind, size=LENGTH if kind == "mixture" else None, precision="bfloat16")
        assert {each.dtype for each in half.model.parameters()} == {torch.bfloat16}
        items = torch.ones(2, *half.input.shape, dtype=half.input.dtype)
        assert half.run(items, half.budgets[0]).logits.dtype == torch.float32
    with pytest.raises(ValueError, match="a mixture of transformers is served in float32 or bfloat16; got 'int8'"):
        open_served(tmp_path / "mixture", precision="int8")
    with pytest.raises(ValueError, match="precision must be float32, bfloat16 or int8; got 'int4'"):
        open_served(tmp_path / "elastic", precision="int4")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    engine = Engine(ServedMixture(mixture(), length=LENGTH), PATIENT, batch=4)
    with TestClient(application(engine, name="mixture")) as client:
        until_ready(client)
        yield client


def asked(items: torch.Tensor, **more: Any) -> dict[str, Any]:
    request = infer(items, **more)
    request["inputs"][0] |= {"name": "input_ids", "datatype": "INT64"}
    return request


def test_the_protocol_carries_token_ids(client: TestClient):
    meta = client.get("/v2/models/mixture").json()
    assert meta["inputs"] == [{"name": "input_ids", "datatype": "INT64", "shape": [-1, LENGTH]}]
    assert meta["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert meta["parameters"]["budgets"] == [0.34, 0.67, 1.0]
    items = tokens(2)
    expected = ServedMixture(mixture(), length=LENGTH).run(items, 0.67)
    found = client.post("/v2/models/mixture/infer", json=asked(items, parameters={"budget": 0.67})).json()
    assert found["parameters"]["budget"] == 0.67
    assert torch.equal(torch.tensor(found["outputs"][0]["data"]).reshape(2, 3), expected.logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": [VOCABULARY] * LENGTH}, "input_ids must hold numbers from 0 to 39; got 40 to 40"),
        ({"data": [-1] * LENGTH}, "input_ids must hold numbers from 0 to 39; got -1 to -1"),
        ({"data": [2**63] * LENGTH}, "input_ids must hold numbers from 0 to 39"),
        ({"data": [1.5] * LENGTH}, "got something else"),
        ({"datatype": "FP32"}, "input_ids must be of datatype INT64; got 'FP32'"),
        ({"shape": [1, LENGTH, 1]}, "input_ids must be of shape [-1, 6]"),
    ],
)
def test_wrong_token_ids(client: TestClient, change: dict, message: str):
    request = asked(tokens(1))
    request["inputs"][0] |= change
    assert message in refused(client.post("/v2/models/mixture/infer", json=request), 400)


def test_it_takes_no_pictures(client: TestClient):
    answer = client.post("/predict", content=png())
    assert "'mixture' takes no pictures. Ask POST /v2/models/mixture/infer" in refused(answer, 400)
