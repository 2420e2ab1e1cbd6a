import pytest
import torch

from nestor.rules import Rule, concatenate, translate

RULES = (
    Rule("blocks.{i}.qkv.{kind}", ("layer.{i}.q.{kind}", "layer.{i}.k.{kind}", "layer.{i}.v.{kind}"), concatenate),
    Rule("blocks.{i}.out", "layer.{i}.o", lambda weight: weight.T),
    Rule("norm", "ln"),
    Rule("norm", "layernorm"),
)
EXPECTED = {
    "blocks.0.qkv.weight": (6, 4),
    "blocks.0.qkv.bias": (6,),
    "blocks.0.out": (4, 2),
    "norm": (4,),
}


def source() -> dict[str, torch.Tensor]:
    parts = {f"layer.0.{p}.weight": torch.randn(2, 4) for p in "qkv"} | {
        f"layer.0.{p}.bias": torch.randn(2) for p in "qkv"
    }
    return parts | {"layer.0.o": torch.randn(2, 4), "ln": torch.randn(4)}


def test_each_target_comes_from_its_sources():
    tensors = source()
    result = translate(RULES, tensors, EXPECTED)
    assert {name: tuple(tensor.shape) for name, tensor in result.items()} == EXPECTED
    assert torch.equal(result["blocks.0.qkv.weight"], torch.cat([tensors[f"layer.0.{p}.weight"] for p in "qkv"]))
    assert torch.equal(result["blocks.0.qkv.bias"], torch.cat([tensors[f"layer.0.{p}.bias"] for p in "qkv"]))
    assert torch.equal(result["blocks.0.out"], tensors["layer.0.o"].T)
    assert all(tensor.is_contiguous() for tensor in result.values())


def test_another_spelling_serves_where_the_first_is_absent():
    tensors = source()
    tensors["layernorm"] = tensors.pop("ln")
    assert torch.equal(translate(RULES, tensors, EXPECTED)["norm"], tensors["layernorm"])


def test_a_rule_without_sources_gives_zeros_and_only_where_the_sources_are_absent():
    rules = (Rule("bias", "b"), Rule("bias"))
    assert torch.equal(translate(rules, {}, {"bias": (3,)})["bias"], torch.zeros(3))
    assert torch.equal(translate(rules, {"b": torch.ones(3)}, {"bias": (3,)})["bias"], torch.ones(3))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_becomes_single_precision(kind: torch.dtype):
    result = translate((Rule("a", "b"),), {"b": torch.tensor([0.5, 2.0], dtype=kind)}, {"a": (2,)})["a"]
    assert result.dtype == torch.float32
    assert result.tolist() == [0.5, 2.0]


def test_a_dot_in_a_name_stands_for_a_dot_only():
    with pytest.raises(ValueError, match="missing axb"):
        translate((Rule("a.b", "c"),), {}, {"axb": (1,)})


def test_a_missing_tensor_is_named_with_the_shape_it_was_for():
    tensors = source()
    del tensors["layer.0.k.weight"]
    with pytest.raises(
        ValueError, match=r"1 of vit do not.*\n.*missing layer\.0\.k\.weight: expected for blocks\.0\.qkv"
    ):
        translate(RULES, tensors, EXPECTED, source="vit")


def test_an_unexpected_tensor_is_named_with_its_shape():
    with pytest.raises(ValueError, match=r"unexpected layer\.1\.o: expected nothing.*found \(5, 7\)"):
        translate(RULES, source() | {"layer.1.o": torch.zeros(5, 7)}, EXPECTED)


def test_only_what_a_pattern_names_may_be_left_over():
    extra = {"text.0.a": torch.zeros(1), "text.b": torch.zeros(1)}
    assert translate(RULES, source() | extra, EXPECTED, ignore=["text.*"]).keys() == EXPECTED.keys()
    with pytest.raises(ValueError, match=r"unexpected text\.0\.a"):
        translate(RULES, source() | extra, EXPECTED, ignore=["text.b"])


def test_a_misshapen_tensor_is_named_with_both_shapes():
    with pytest.raises(ValueError, match=r"misshapen ln \(5,\): expected norm \(4,\), found \(5,\)"):
        translate(RULES, source() | {"ln": torch.zeros(5)}, EXPECTED)


def test_parts_that_only_together_have_the_right_size_are_misshapen():
    tensors = source() | {"layer.0.q.bias": torch.zeros(1), "layer.0.k.bias": torch.zeros(3)}
    with pytest.raises(
        ValueError, match=r"misshapen layer\.0\.q\.bias \(1,\), layer\.0\.k\.bias \(3,\).*differ in shape"
    ):
        translate(RULES, tensors, EXPECTED)


def test_quantised_numbers_are_refused():
    with pytest.raises(ValueError, match=r"expected norm \(4,\), found numbers of type torch\.int8"):
        translate(RULES, source() | {"ln": torch.zeros(4, dtype=torch.int8)}, EXPECTED)


def test_at_most_five_faults_are_listed_and_the_rest_counted():
    extra = {f"extra.{i}": torch.zeros(1) for i in range(8)}
    with pytest.raises(ValueError, match=r"8 of the state dict do not") as caught:
        translate(RULES, source() | extra, EXPECTED)
    assert str(caught.value).count("unexpected") == 5
    assert "and 3 more" in str(caught.value)
