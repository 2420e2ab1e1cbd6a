"""Our networks as transformers classes: one folder, the same logits, and what its users take for granted."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_vit import DENSE, NARROWED, OWN, tiny
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    pipeline,
)

import nestor
from nestor.hub import NestorConfig, NestorForImageClassification, NestorModel
from nestor.models.saved import PROCESSOR, save_model
from nestor.models.video import VideoSettings, VideoViT

LABELS = ("cat", "dog", "owl")
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nestor.ViT:
    return tiny(OWN, classes=3, labels=LABELS, head="class_mean", scores=("loss",))


def read(folder: Path, **more: Any) -> NestorForImageClassification:
    found = AutoModelForImageClassification.from_pretrained(folder, **more)
    assert isinstance(found, NestorForImageClassification)
    return found


@pytest.mark.parametrize("budget", [1.0, 0.7, 0.5])
def test_what_nestor_saved_gives_the_same_logits_bit_for_bit(model: nestor.ViT, tmp_path: Path, budget: float):
    nestor.save(model, tmp_path)
    found = read(tmp_path)
    assert not found.training
    found.budget = budget
    assert torch.equal(found(IMAGES).logits, model(IMAGES, budget).logits)
    assert torch.equal(found(IMAGES, budget=1.0).logits, model(IMAGES, 1.0).logits)


@pytest.mark.parametrize("budget", [1.0, 0.7, 0.5])
def test_what_transformers_saved_nestor_reads(model: nestor.ViT, tmp_path: Path, budget: float):
    NestorForImageClassification.from_nestor(model).save_pretrained(tmp_path / "one")
    read(tmp_path / "one").save_pretrained(tmp_path / "two")
    again = nestor.load(tmp_path / "two")
    assert again.settings == model.settings
    assert torch.equal(again(IMAGES, budget).logits, model(IMAGES, budget).logits)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys() == model.state_dict().keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    written = [sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert written == [["config.json", "model.safetensors", PROCESSOR]] * 2


def test_the_config_says_what_others_ask_for(model: nestor.ViT, tmp_path: Path):
    nestor.save(model, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, NestorConfig)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 2, 4)
    assert (config.image_size, config.patch_size, config.num_channels) == (16, 4, 3)
    assert config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert config.label2id == {"cat": 0, "dog": 1, "owl": 2}
    config.save_pretrained(tmp_path / "again")
    again = NestorConfig.from_pretrained(tmp_path / "again", name_or_path=config.name_or_path)
    assert again.to_dict() == config.to_dict()


def test_tokens_are_those_of_the_network(model: nestor.ViT, tmp_path: Path):
    nestor.save(model, tmp_path)
    found = AutoModel.from_pretrained(tmp_path)
    assert isinstance(found, NestorModel)
    tokens = found(IMAGES).last_hidden_state
    assert torch.equal(tokens, model(IMAGES).tokens)
    assert tokens.shape == (2, 17, 24)
    assert torch.equal(found(IMAGES, return_dict=False)[0], tokens)
    found.save_pretrained(tmp_path / "body")
    assert nestor.load(tmp_path / "body").settings.classes == 0


def test_the_network_behind_is_shared_not_copied(model: nestor.ViT):
    model.budget = 0.6
    whole, body = NestorForImageClassification.from_nestor(model), NestorModel.from_nestor(model)
    assert (whole.budget, body.budget) == (0.6, 0.6)
    assert whole.vit.embed.weight is body.vit.embed.weight is model.embed.weight
    assert model.head is not None
    with pytest.raises(ValueError, match=r"a classifier needs a head and this network has none. Fit it first"):
        NestorForImageClassification.from_nestor(tiny(NARROWED))


def test_a_budget_out_of_reach_is_refused(model: nestor.ViT):
    found = NestorForImageClassification.from_nestor(model)
    with pytest.raises(ValueError, match=r"budget must lie in \["):
        found.budget = found.least_budget / 2
    assert found.budget == 1
    found.budget = found.least_budget
    assert found(IMAGES).logits.shape == (2, 3)


def test_a_pipeline_takes_the_folder(model: nestor.ViT, tmp_path: Path):
    nestor.save(model, tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    values = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    said = classify(Image.fromarray(values))
    assert [entry["label"] for entry in said] != []
    assert {entry["label"] for entry in said} == set(LABELS)
    assert sum(entry["score"] for entry in said) == pytest.approx(1, abs=1e-5)
    assert [entry["score"] for entry in said] == sorted((entry["score"] for entry in said), reverse=True)


@pytest.mark.parametrize("size", [(40, 40), (16, 16), (9, 9)])
def test_square_pictures_are_prepared_as_nestor_prepares_them(model: nestor.ViT, tmp_path: Path, size: tuple[int, int]):
    from nestor.api import prepare

    nestor.save(model, tmp_path)
    prepared = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert isinstance(prepared, BitImageProcessorPil)
    values = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    theirs = prepared(picture, return_tensors="pt")["pixel_values"]
    ours = prepare.normalised(model, prepare.pixels(picture, 16))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_oblong_pictures_are_cropped_to_the_centre(model: nestor.ViT, tmp_path: Path):
    nestor.save(model, tmp_path)
    values = np.zeros((16, 48, 3), dtype=np.uint8)
    values[:, 16:32] = 255
    prepared = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(Image.fromarray(values), return_tensors="pt")
    white = (1 - torch.tensor(model.settings.mean)) / torch.tensor(model.settings.std)
    torch.testing.assert_close(prepared["pixel_values"], white.view(1, 3, 1, 1).expand(1, 3, 16, 16))


def test_a_head_for_other_classes_starts_afresh_and_the_rest_is_kept(model: nestor.ViT, tmp_path: Path):
    nestor.save(model, tmp_path)
    found = read(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert found(IMAGES).logits.shape == (2, 5)
    kept = model.state_dict()
    for name, tensor in found.vit.state_dict().items():
        if name.startswith("head."):
            assert torch.isfinite(tensor).all()
            assert tensor.abs().max() < 1
        else:
            assert torch.equal(tensor, kept[name]), name


def test_a_network_without_a_head_is_given_one(tmp_path: Path):
    nestor.save(tiny(NARROWED), tmp_path)
    found = read(tmp_path, num_labels=4, id2label={i: f"c{i}" for i in range(4)})
    assert (found.vit.settings.head, found.vit.settings.labels) == ("class_mean", ("c0", "c1", "c2", "c3"))
    assert found(IMAGES).logits.shape == (2, 4)
    assert 0 < found.vit.state_dict()["head.linear.weight"].abs().max() < 1


NONE = r"a classifier needs a head, and this network has none: its settings name 0 classes. Fit it first"


@pytest.mark.parametrize("saved_by", ["nestor", "transformers", "transformers from a classifier"])
def test_a_head_that_nobody_trained_answers_nothing(tmp_path: Path, saved_by: str):
    body, classes = tiny(NARROWED), 3 if saved_by.endswith("classifier") else 0
    if saved_by == "nestor":
        nestor.save(body, tmp_path)
    else:
        NestorModel.from_nestor(tiny(NARROWED, classes=classes, head="class_mean")).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).num_labels == 0
    with pytest.raises(ValueError, match=NONE):
        read(tmp_path)
    with pytest.raises(ValueError, match=NONE):
        pipeline("image-classification", model=str(tmp_path))
    assert read(tmp_path, num_labels=2)(IMAGES).logits.shape == (2, 2)
    assert read(tmp_path, id2label={0: "x", 1: "y", 2: "z"})(IMAGES).logits.shape == (2, 3)


def test_a_pipeline_of_features_gives_the_tokens(tmp_path: Path):
    body = tiny(NARROWED)
    nestor.save(body, tmp_path)
    describe = pipeline("image-feature-extraction", model=str(tmp_path))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    prepared = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.tensor(describe(picture)), body(prepared).tokens)
    inside: Any = describe.model
    inside.budget = 0.6
    assert torch.equal(torch.tensor(describe(picture)), body(prepared, 0.6).tokens)


def test_saving_takes_the_keywords_of_transformers(model: nestor.ViT, tmp_path: Path):
    found = NestorForImageClassification.from_nestor(model)
    tensors = {name: torch.ones_like(tensor) for name, tensor in found.state_dict().items()}
    found.save_pretrained(tmp_path, state_dict=tensors, max_shard_size="1KB", save_original_format=False, token="t")
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == model.state_dict().keys()
    assert all((tensor == 1).all() for tensor in written.values())
    found.save_pretrained(tmp_path / "never", is_main_process=False)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("asked", [{"variant": "fp16"}, {"distributed_checkpoint": True}])
def test_files_that_nestor_could_not_find_are_not_written(model: nestor.ViT, tmp_path: Path, asked: dict[str, Any]):
    found = NestorForImageClassification.from_nestor(model)
    with pytest.raises(ValueError, match=r"weights are one file of one name; got variant=.* Leave both out"):
        found.save_pretrained(tmp_path / "never", **asked)
    assert not (tmp_path / "never").exists()


def test_weights_come_under_our_names_and_those_of_transformers(model: nestor.ViT):
    for tensors in (model.state_dict(), NestorForImageClassification.from_nestor(model).state_dict()):
        found = NestorForImageClassification(NestorConfig.of(model.settings)).eval()
        done = found.load_state_dict(tensors)
        assert not done.missing_keys + done.unexpected_keys
        assert torch.equal(found(IMAGES).logits, model(IMAGES).logits)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*vit.walk"):
        found.load_state_dict(model.state_dict() | {"walk": torch.zeros(1)})


def test_labels_named_later_are_saved(model: nestor.ViT, tmp_path: Path):
    found = NestorForImageClassification.from_nestor(model)
    found.config.id2label = {0: "x", 1: "y", 2: "z"}
    found.save_pretrained(tmp_path)
    assert nestor.load(tmp_path).settings.labels == ("x", "y", "z")
    assert read(tmp_path).config.id2label == {0: "x", 1: "y", 2: "z"}


def test_classes_without_names_have_numbers(tmp_path: Path):
    nestor.save(tiny(DENSE, classes=3), tmp_path)
    found = read(tmp_path)
    assert found.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    found.save_pretrained(tmp_path / "again")
    assert nestor.load(tmp_path / "again").settings.labels == ()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_the_precision_is_kept_unless_another_is_asked_for(model: nestor.ViT, tmp_path: Path, kind: torch.dtype):
    NestorForImageClassification.from_nestor(model.to(kind)).save_pretrained(tmp_path)
    assert read(tmp_path).dtype == kind
    assert read(tmp_path, dtype=torch.float32).dtype == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")


def test_a_config_alone_builds_an_untrained_network(model: nestor.ViT):
    built = AutoModelForImageClassification.from_config(NestorConfig.of(model.settings))
    assert built.vit.settings == model.settings
    again = nestor.ViT(model.settings).state_dict()
    for name, tensor in built.vit.state_dict().items():
        assert torch.isfinite(tensor).all()
        assert tensor.std(correction=0).item() == pytest.approx(again[name].std(correction=0).item(), abs=0.05), name
    assert NestorConfig().network(head=False).nest.experts > 1


def test_the_loss_is_the_cross_entropy(model: nestor.ViT):
    found, labels = NestorForImageClassification.from_nestor(model), torch.tensor([0, 2])
    output = found(IMAGES, labels=labels)
    assert torch.equal(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    loss, logits = found(IMAGES, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    output.loss.backward()
    assert found.vit.embed.weight.grad is not None


def test_checkpointing_changes_no_gradient(model: nestor.ViT):
    found, labels = NestorForImageClassification.from_nestor(model), torch.tensor([0, 2])

    def gradient() -> torch.Tensor:
        found.zero_grad()
        found(IMAGES, labels=labels, budget=0.6).loss.backward()
        grad = found.vit.embed.weight.grad
        assert grad is not None
        return grad.clone()

    whole = gradient()
    found.activation_checkpointing_enable()
    assert found.is_activation_checkpointing
    assert found.vit.checkpointing
    assert torch.equal(gradient(), whole)
    found.activation_checkpointing_disable()
    assert not found.vit.checkpointing


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_what_tokens_of_several_widths_cannot_give_is_refused(model: nestor.ViT, name: str):
    for found in (NestorForImageClassification.from_nestor(model), NestorModel.from_nestor(model)):
        with pytest.raises(ValueError, match=rf"{name} must be off: .* Read the routings"):
            found(IMAGES, **{name: True})


def test_settings_that_are_none_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"settings in this config lacks fields: depth, grid, nest, patch"):
        NestorConfig(settings={})
    video = VideoViT(VideoSettings(space=tiny().settings, frames=2, tubelet=1, depth=1))
    save_model(video, tmp_path)
    with pytest.raises(ValueError, match=r"transformers can take networks of kind 'vit'; this one is of kind 'video'"):
        NestorConfig.from_pretrained(tmp_path)


def test_settings_survive_json(model: nestor.ViT):
    config = NestorConfig.of(model.settings)
    assert config.settings == json.loads(json.dumps(asdict(model.settings)))
    assert config.network(head=True) == model.settings
