import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_vit import plain_forward, plain_read, randomise, relative
from safetensors.torch import load_file, save_file
from torch import Tensor

from nestor.models.pretrained import read

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}
HIDDEN = SIZES | {"intermediate_size": 96}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}
TEXT |= {"bos_token_id": 0, "eos_token_id": 2}
OTHER_SIZES = [(42, 42), (21, 49)]


def build(name: str, **config: Any) -> Any:
    import transformers

    kind = {
        "ViT": transformers.ViTConfig,
        "DeiT": transformers.DeiTConfig,
        "Dinov2WithRegisters": transformers.Dinov2WithRegistersConfig,
        "Dinov2": transformers.Dinov2Config,
        "CLIPVision": transformers.CLIPVisionConfig,
        "SiglipVision": transformers.SiglipVisionConfig,
        "CLIP": transformers.CLIPConfig,
        "Siglip": transformers.SiglipConfig,
    }
    config_class = next(value for prefix, value in kind.items() if name.startswith(prefix))
    model = getattr(transformers, name)(config_class(**config)).eval()
    randomise(model)
    return model


def pair(**changes: Any) -> dict[str, Any]:
    return {"vision_config": HIDDEN | changes, "text_config": TEXT}


@torch.no_grad()
def check(model: Any, folder: Path, sizes: list[tuple[int, int]], **arguments: Any) -> None:
    """Tokens, and logits where the original has a classifier, agree at the trained size and at others."""
    model.save_pretrained(folder)
    plain = read(folder)
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    for height, width in [(28, 28), *sizes]:
        images = torch.randn(2, 3, height, width)
        extra = arguments if (height, width) != (28, 28) else {}
        tokens, logits = plain_forward(plain, images)
        assert relative(tokens, base(images, **extra).last_hidden_state) < 1e-5
        if plain.settings.classes:
            assert logits is not None
            assert relative(logits, model(images, **extra).logits) < 1e-5
        else:
            assert logits is None


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassification"])
def test_vit_and_deit_agree_with_the_original(name: str, tmp_path: Path):
    check(build(name, **HIDDEN, num_labels=5), tmp_path, OTHER_SIZES, interpolate_pos_encoding=True)


def test_distilled_deit_averages_two_heads(tmp_path: Path):
    model = build("DeiTForImageClassificationWithTeacher", **HIDDEN, num_labels=5)
    check(model, tmp_path, OTHER_SIZES, interpolate_pos_encoding=True)
    assert read(tmp_path).settings.head == "class_distill"


@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
@pytest.mark.parametrize(("kind", "gated"), [("Model", True), ("ForImageClassification", False)])
def test_dinov2_agrees_with_the_original(family: str, kind: str, gated: bool, tmp_path: Path):
    check(build(family + kind, **SIZES, num_labels=5, use_swiglu_ffn=gated), tmp_path, OTHER_SIZES)


def test_registers_stand_between_the_class_token_and_the_patches_without_positions(tmp_path: Path):
    model = build("Dinov2WithRegistersModel", **SIZES, num_register_tokens=2)
    model.save_pretrained(tmp_path)
    plain = read(tmp_path)
    assert plain.settings.prefix == 3
    assert torch.equal(plain.tensors["embed.prefix"][1:], model.embeddings.register_tokens[0])
    assert plain.tensors["embed.prefix_position"][1:].abs().max() == 0
    assert plain.tensors["embed.prefix_position"][0].abs().max() > 0


@torch.no_grad()
def check_clip(model: Any, tower: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    plain = read(folder)
    for height, width in [(28, 28), *OTHER_SIZES]:
        images = torch.randn(2, 3, height, width)
        output = tower(images, interpolate_pos_encoding=True)
        tokens, _ = plain_forward(plain, images)
        assert relative(tokens, tower.post_layernorm(output.last_hidden_state)) < 1e-5
        assert relative(plain_read(plain, images), output.pooler_output) < 1e-5


def test_clip_tower_agrees_with_the_original(tmp_path: Path):
    model = build("CLIPVisionModel", **HIDDEN)
    check_clip(model, model, tmp_path)
    assert read(tmp_path).settings.activation == "quick_gelu"


def test_clip_with_another_activation_agrees(tmp_path: Path):
    model = build("CLIPVisionModel", **HIDDEN, hidden_act="gelu")
    check_clip(model, model, tmp_path)


@pytest.mark.parametrize("name", ["CLIPModel", "CLIPVisionModelWithProjection"])
def test_the_text_tower_and_the_projection_of_clip_are_left_out(name: str, tmp_path: Path):
    model = build(name, **(pair() if name == "CLIPModel" else HIDDEN))
    check_clip(model, model.vision_model, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("name", ["SiglipVisionModel", "SiglipModel"])
def test_siglip_agrees_with_the_original_pooling_included(name: str, tmp_path: Path):
    model = build(name, **(pair() if name == "SiglipModel" else HIDDEN))
    tower = getattr(model, "vision_model", model)
    model.save_pretrained(tmp_path)
    plain = read(tmp_path)
    assert plain.settings.prefix == 0
    for height, width in [(28, 28), *OTHER_SIZES]:
        images = torch.randn(2, 3, height, width)
        output = tower(images, interpolate_pos_encoding=True)
        assert relative(plain_forward(plain, images)[0], output.last_hidden_state) < 1e-5
        assert relative(plain_read(plain, images), output.pooler_output) < 1e-5


def test_siglip_without_pooling_head_agrees(tmp_path: Path):
    check(
        build("SiglipVisionModel", **HIDDEN, vision_use_head=False),
        tmp_path,
        OTHER_SIZES,
        interpolate_pos_encoding=True,
    )
    assert read(tmp_path).settings.head == "mean"


@torch.no_grad()
def test_siglip_classifier_reads_the_mean_of_the_patches(tmp_path: Path):
    model = build("SiglipForImageClassification", **pair(), num_labels=5)
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    logits = plain_forward(read(tmp_path), images)[1]
    assert logits is not None
    assert relative(logits, model(images).logits) < 1e-5


@pytest.mark.parametrize(("name", "sizes"), [("ViTModel", HIDDEN), ("Dinov2Model", SIZES)])
def test_newer_names_of_the_same_weights_are_understood(name: str, sizes: dict[str, Any], tmp_path: Path):
    model = build(name, **sizes)
    model.save_pretrained(tmp_path / "old")
    model.save_pretrained(tmp_path / "new", save_original_format=False)
    old, new = load_file(tmp_path / "old" / "model.safetensors"), load_file(tmp_path / "new" / "model.safetensors")
    assert old.keys() != new.keys()
    assert_same(read(tmp_path / "old").tensors, read(tmp_path / "new").tensors)


def assert_same(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_shards_give_what_one_file_gives(tmp_path: Path):
    model = build("ViTModel", **HIDDEN)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert_same(read(tmp_path / "one").tensors, read(tmp_path / "many").tensors)


def test_a_config_with_defaults_left_out_means_the_defaults(tmp_path: Path):
    model = build("SiglipVisionModel", **HIDDEN)
    model.save_pretrained(tmp_path)
    config = {"model_type": "siglip", "vision_config": {**HIDDEN, "hidden_act": None}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = read(tmp_path).settings
    assert (settings.activation, settings.eps, settings.head) == ("gelu_tanh", 1e-6, "attention")


def test_absent_biases_of_the_projections_are_zeros(tmp_path: Path):
    check(build("ViTModel", **HIDDEN, qkv_bias=False), tmp_path, [])
    assert read(tmp_path).tensors["blocks.0.attention.qkv.bias"].abs().max() == 0


def test_names_of_classes_and_normalisation_are_read(tmp_path: Path):
    names = {0: "good", 1: "crack", 2: "dark"}
    model = build("ViTForImageClassification", **HIDDEN, id2label=names, label2id={v: k for k, v in names.items()})
    model.save_pretrained(tmp_path)
    settings = read(tmp_path).settings
    assert settings.labels == ("good", "crack", "dark")
    assert settings.mean == settings.std == (0.5, 0.5, 0.5)
    card = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": card | {"do_normalize": False}}))
    assert read(tmp_path).settings.std == (1.0, 1.0, 1.0)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(card))
    assert read(tmp_path).settings.mean == (0.1, 0.2, 0.3)
    assert read(tmp_path).settings.std == (0.4, 0.5, 0.6)


def test_invented_names_of_classes_are_no_names(tmp_path: Path):
    build("ViTForImageClassification", **HIDDEN, num_labels=4).save_pretrained(tmp_path)
    assert read(tmp_path).settings.classes == 4
    assert read(tmp_path).settings.labels == ()


def test_half_precision_weights_become_single_precision(tmp_path: Path):
    model = build("ViTModel", **HIDDEN).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    plain = read(tmp_path)
    assert plain.tensors["norm.weight"].dtype == torch.float32
    assert torch.equal(plain.tensors["norm.weight"], model.layernorm.weight.float())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("ViTForImageClassification", **HIDDEN, num_labels=5).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_weights(folder: Path, changes: dict[str, Tensor | None]) -> None:
    tensors: dict[str, Any] = {**load_file(folder / "model.safetensors"), **changes}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors")


def test_tensors_cannot_be_replaced(folder: Path):
    with pytest.raises(TypeError, match="does not support item assignment"):
        read(folder).tensors["norm.weight"] = torch.zeros(48)  # type: ignore[index]


def test_an_unknown_model_type_lists_the_known(folder: Path):
    edit_config(folder, model_type="swin")
    with pytest.raises(ValueError, match=r"model_type must be one of vit, deit, dinov2, .*; got 'swin'"):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [7, 14]}, r"Patches must be square; got patch_size \[7, 14\]"),
        ({"num_channels": 1}, "Pictures must have 3 channels; got num_channels 1"),
        ({"hidden_act": "relu"}, "hidden_act must be one of gelu.*; got 'relu'"),
        ({"num_attention_heads": 5}, "heads must divide the width 48; got 5"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label must name each class; got 2 names for 5 classes"),
        ({"num_hidden_layers": 3}, r"missing vit\.encoder\.layer\.2\.layernorm_before\.weight"),
        ({"num_hidden_layers": 1}, r"unexpected vit\.encoder\.layer\.1\."),
        ({"image_size": 35}, r"misshapen vit\.embeddings\.position_embeddings \(1, 17, 48\): expected embed\.position"),
        (
            {"intermediate_size": 80},
            r"intermediate\.dense\.weight \(96, 48\): expected blocks\.0\.mlp\.in\.weight \(80, 48\)",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], message: str):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit.layernorm.bias": None}, r"missing vit\.layernorm\.bias: expected for norm\.bias \(48,\)"),
        ({"classifier.weight": None}, r"missing classifier\.weight: expected for head\.weight \(5, 48\)"),
        ({"vit.adapter": torch.zeros(3)}, r"unexpected vit\.adapter: expected nothing by this name, found \(3,\)"),
        (
            {"vit.layernorm.bias": torch.zeros(47)},
            r"misshapen vit\.layernorm\.bias \(47,\): expected norm\.bias \(48,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, changes: dict[str, Tensor | None], message: str):
    edit_weights(folder, changes)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_parts_for_pretraining_may_be_left_over(folder: Path):
    edit_weights(folder, {"vit.embeddings.mask_token": torch.zeros(1, 1, 48), "vit.pooler.dense.bias": torch.zeros(48)})
    assert read(folder).settings.classes == 5


def test_a_clip_classifier_is_refused(tmp_path: Path):
    build("CLIPForImageClassification", **pair(), num_labels=5).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"A CLIP classifier must not be present.*model\.vision_model\.save_pretrained"
    ):
        read(tmp_path)
