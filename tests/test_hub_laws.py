"""What transformers holds of every vision model and its config (its own mixins are in no wheel), for both classes."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vit import NARROWED, OWN, tiny
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

import nestor
from nestor.hub import NestorConfig, NestorForImageClassification, NestorModel

LABELS = ("cat", "dog", "owl")
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
WEIGHTS = "model.safetensors"
Model = NestorModel | NestorForImageClassification
CLASSES = (NestorModel, NestorForImageClassification)


@pytest.fixture(params=CLASSES, ids=lambda made: made.__name__)
def model(request: pytest.FixtureRequest) -> Model:
    body = tiny(NARROWED, classes=3, labels=LABELS, head="class_mean")
    made = request.param.from_nestor(body)
    made.budget = 0.7
    return made


def config() -> NestorConfig:
    return NestorConfig.of(tiny(OWN, classes=3, labels=LABELS).settings)


def first(model: nn.Module, images: torch.Tensor = IMAGES, **more: Any) -> torch.Tensor:
    """Logits, or tokens where there is no head."""
    with torch.no_grad():
        return model(images, return_dict=False, **more)[0]


def again(model: Model, folder: Path, **more: Any) -> Model:
    """What the Auto class makes of the folder that the network was saved into, at the same budget."""
    if not (folder / WEIGHTS).exists():
        model.save_pretrained(folder)
    auto = AutoModelForImageClassification if isinstance(model, NestorForImageClassification) else AutoModel
    found = auto.from_pretrained(folder, **more)
    assert type(found) is type(model)
    found.budget = model.budget
    return found


def loaded(made: Any, folder: Path, **more: Any) -> tuple[Model, dict[str, Any]]:
    """The network, and what its class tells of missing and left over tensors."""
    return made.from_pretrained(folder, output_loading_info=True, **more)


# The config


def test_a_config_comes_back_from_dict_json_and_file(tmp_path: Path):
    own = config()
    own.save_pretrained(tmp_path)
    (tmp_path / "text.json").write_text(own.to_json_string())
    for found in (
        NestorConfig.from_dict(own.to_dict()),
        NestorConfig.from_json_file(tmp_path / "text.json"),
        NestorConfig.from_pretrained(tmp_path, name_or_path=""),
        AutoConfig.from_pretrained(tmp_path),
        copy.deepcopy(own),
    ):
        assert isinstance(found, NestorConfig)
        found._name_or_path = own._name_or_path
        assert found.to_dict() == own.to_dict()
        assert found.network(head=True) == own.network(head=True)


def test_a_config_needs_no_arguments():
    assert NestorConfig().num_labels == 2
    assert NestorConfig.from_dict(NestorConfig().to_dict()).to_dict() == NestorConfig().to_dict()


def test_a_number_of_labels_names_them():
    made: Any = NestorConfig
    found = made(num_labels=5)
    assert (len(found.id2label), len(found.label2id)) == (5, 5)
    found.num_labels = 3
    assert found.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert found.network(head=True).classes == 3


def test_sizes_can_be_read_and_are_those_of_the_settings_alone():
    own = config()
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels"):
        assert isinstance(getattr(own, name), int)
        with pytest.raises(AttributeError, match=name):
            setattr(own, name, 7)


# Saving and loading


def test_a_saved_network_gives_the_same_outputs(model: Model, tmp_path: Path):
    assert torch.equal(first(again(model, tmp_path)), first(model))


def test_nothing_is_missing_and_nothing_left_over(model: Model, tmp_path: Path):
    model.save_pretrained(tmp_path)
    _, told = loaded(type(model), tmp_path)
    assert not any(told.values()), told


def test_a_body_leaves_the_head_and_a_classifier_names_the_head_it_lacks(tmp_path: Path):
    nestor.save(tiny(NARROWED, classes=3), tmp_path / "whole")
    _, told = loaded(NestorModel, tmp_path / "whole")
    assert not any(told.values()), told
    nestor.save(tiny(NARROWED), tmp_path / "body")
    _, told = loaded(NestorForImageClassification, tmp_path / "body", num_labels=3)
    assert {name.split(".")[1] for name in told["missing_keys"]} == {"head"}
    assert not told["unexpected_keys"]


def test_tensors_that_a_file_lacks_are_drawn_as_when_built(model: Model, tmp_path: Path):
    model.save_pretrained(tmp_path)
    lost = "blocks.0.mlp.inward"
    kept = {name: tensor for name, tensor in load_file(tmp_path / WEIGHTS).items() if name != lost}
    save_file(kept, tmp_path / WEIGHTS, {"format": "pt"})
    found = again(model, tmp_path)
    fresh = type(model)(model.config).vit.state_dict()[lost]
    drawn = found.vit.state_dict()[lost]
    assert torch.isfinite(drawn).all()
    assert drawn.std().item() == pytest.approx(fresh.std().item(), rel=0.2)
    assert all(torch.equal(found.vit.state_dict()[name], tensor) for name, tensor in kept.items())


def test_another_head_needs_leave_and_the_rest_is_kept(tmp_path: Path):
    body = tiny(NARROWED, classes=3, head="class_mean")
    nestor.save(body, tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        NestorForImageClassification.from_pretrained(tmp_path, num_labels=7)
    found = NestorForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert first(found).shape == (3, 7)
    assert found.config.num_labels == 7
    kept = body.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in found.vit.state_dict().items() if "head" not in name)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_asked_for_and_kept(model: Model, tmp_path: Path, kind: torch.dtype):
    half = again(model, tmp_path / "whole", dtype=kind)
    assert {tensor.dtype for tensor in half.parameters()} == {kind}
    assert half.config.dtype == kind
    torch.testing.assert_close(first(half, IMAGES.to(kind)).float(), first(model), rtol=0.1, atol=0.1)
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")
    assert again(half, tmp_path / "half", dtype="auto").dtype == kind


def test_a_device_map_places_the_network(model: Model, tmp_path: Path):
    placed = again(model, tmp_path, device_map="cpu")
    assert placed.device == torch.device("cpu")
    assert torch.equal(first(placed), first(model))


def test_a_copy_is_another_network_with_the_same_outputs(model: Model):
    other = copy.deepcopy(model)
    assert torch.equal(first(other), first(model))
    with torch.no_grad():
        other.vit.embed.weight.zero_()
    assert not torch.equal(first(other), first(model))


# Forward


def test_pictures_come_first(model: Model):
    assert next(iter(inspect.signature(model.forward).parameters)) == model.main_input_name == "pixel_values"


def test_two_calls_are_one(model: Model):
    assert torch.equal(first(model), first(model))
    assert torch.equal(first(model.train()), first(model.eval()))


def test_a_batch_is_its_pictures_one_by_one(model: Model):
    alone = torch.cat([first(model, picture[None]) for picture in IMAGES])
    torch.testing.assert_close(first(model), alone, rtol=1e-4, atol=1e-5)


def test_tuples_hold_what_dicts_hold(model: Model):
    with torch.no_grad():
        named = model(pixel_values=IMAGES)
    assert torch.equal(named.to_tuple()[0], first(model))
    assert isinstance(model(IMAGES, return_dict=False), tuple)
    model.config.return_dict = False
    assert isinstance(model(IMAGES), tuple)


def test_other_sizes_are_taken_with_or_without_asking(model: Model):
    larger = torch.randn(1, 3, 24, 24)
    assert torch.equal(first(model, larger, interpolate_pos_encoding=True), first(model, larger))


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
@pytest.mark.parametrize("where", ["call", "config"])
def test_what_cannot_be_returned_is_refused(model: Model, name: str, where: str):
    if where == "config":
        model.set_attn_implementation("eager")
        setattr(model.config, name, True)
    with pytest.raises(ValueError, match=rf"{name} must be off: .* Read the routings"):
        model(IMAGES, **({name: True} if where == "call" else {}))


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_attention_is_the_same_by_either_name(model: Model, tmp_path: Path, kind: str):
    assert torch.equal(first(again(model, tmp_path, attn_implementation=kind)), first(model))


def test_attention_that_is_not_there_is_refused(model: Model, tmp_path: Path):
    with pytest.raises((ImportError, ValueError), match=r"[Ff]lash"):
        again(model, tmp_path, attn_implementation="flash_attention_2")


def test_a_compiled_network_gives_the_same_outputs():
    model = NestorForImageClassification.from_nestor(tiny(NARROWED, classes=3, head="class_mean"))
    # The graph is what may break; making machine code of it is torch's matter.
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(first(compiled), first(model))  # pyright: ignore[reportArgumentType]


# Parts, initialisation and training


def test_parts_are_found_under_their_common_names(model: Model):
    assert model.base_model is model.vit
    assert model.get_input_embeddings() is model.vit.embed
    assert model.get_output_embeddings() is None
    other = copy.deepcopy(model.vit.embed)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other


def test_a_new_network_is_drawn_alike_by_alike_seeds_and_finite(model: Model):
    def built() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return type(model)(model.config).state_dict()

    one, two = built(), built()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.isfinite(tensor).all() for tensor in one.values())
    assert any(tensor.abs().sum() for tensor in one.values())


def test_no_weights_are_tied_and_none_share_memory(model: Model):
    assert not model.all_tied_weights_keys
    places = [tensor.data_ptr() for tensor in model.parameters()]
    assert len(places) == len(set(places))


def test_checkpointing_is_a_flag_that_changes_no_gradient(model: Model):
    def gradients() -> dict[str, torch.Tensor | None]:
        model.zero_grad()
        model(IMAGES, return_dict=False)[0].square().sum().backward()
        return {name: None if each.grad is None else each.grad.clone() for name, each in model.named_parameters()}

    assert model.supports_gradient_checkpointing
    model.train()
    plain = gradients()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    for name, gradient in gradients().items():
        wanted = plain[name]
        assert (gradient is None) == (wanted is None), name
        assert gradient is None or wanted is None or torch.equal(gradient, wanted), name
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_a_frozen_network_passes_gradients_through_its_embedding(model: Model):
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(IMAGES, return_dict=False)[0].requires_grad
    model.disable_input_require_grads()
    assert not model(IMAGES, return_dict=False)[0].requires_grad


PROBLEMS = {
    "single_label_classification": (torch.tensor([0, 2, 1]), nn.functional.cross_entropy),
    "multi_label_classification": (torch.eye(3), nn.functional.binary_cross_entropy_with_logits),
    "regression": (torch.eye(3), nn.functional.mse_loss),
}


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("told", [True, False])
def test_each_kind_of_problem_has_its_loss(kind: str, told: bool):
    found = NestorForImageClassification.from_nestor(tiny(NARROWED, classes=3, labels=LABELS, head="class_mean"))
    labels, loss = PROBLEMS[kind]
    if told:
        found.config.problem_type = kind  # pyright: ignore[reportAttributeAccessIssue]
    elif kind == "regression":
        # Without being told, several real numbers are several labels.
        loss = nn.functional.binary_cross_entropy_with_logits
    output = found(IMAGES, labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
