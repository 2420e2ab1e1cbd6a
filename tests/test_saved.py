"""Our own networks to disk and back."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_vit import DENSE, NARROWED, SKIPPING, tiny

from nestor import store
from nestor.layers.nested import Nest
from nestor.models.saved import load_model, save_model
from nestor.models.vit import ViT
from nestor.types import Stored

CASES = {
    "dense": (DENSE, {}),
    "narrowed with a head": (NARROWED, {"classes": 3, "labels": ("a", "b", "c"), "head": "class_mean"}),
    "skipping, everything else unusual": (
        SKIPPING,
        {"prefix": 3, "activation": "swiglu", "embed_norm": True, "classes": 2, "head": "class_distill", "eps": 1e-5},
    ),
    "attention pooling": (NARROWED, {"prefix": 0, "classes": 2, "head": "attention", "scores": ("linear",)}),
}


@pytest.mark.parametrize("case", CASES)
def test_round_trip_bit_for_bit(tmp_path: Path, case: str):
    nest, changes = CASES[case]
    model = tiny(nest, **changes)
    for buffer in model.buffers():
        buffer.add_(torch.rand(()))
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.settings == model.settings
    assert again.budget == 1.0
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in again.parameters())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(images).tokens, model(images).tokens)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_the_precision_is_kept(tmp_path: Path, kind: torch.dtype):
    model = tiny(NARROWED).to(kind)
    save_model(model, tmp_path)
    for name, tensor in load_model(tmp_path).state_dict().items():
        assert tensor.dtype == kind
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_loaded_network_does_not_depend_on_its_file(tmp_path: Path):
    model = tiny()
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch.equal(again.embed.weight, model.embed.weight)


def changed(folder: Path, model: ViT, *, settings=None, tensors=None, kind="vit") -> None:
    """Save a network whose settings or tensors were tampered with, consistently."""
    stored = Stored(
        kind=kind,
        settings=asdict(model.settings) if settings is None else settings,
        tensors=model.state_dict() if tensors is None else tensors,
    )
    store.save(stored, folder)


def test_wrong_tensors_are_listed_up_to_five(tmp_path: Path):
    model = tiny()
    tensors = model.state_dict()
    del tensors["embed.bias"]
    tensors["extra"] = torch.zeros(2)
    tensors["embed.prefix"] = torch.zeros(1, 7)
    changed(tmp_path, model, tensors=tensors)
    message = (
        r"3 tensors of .*model\.safetensors do not fit its settings: "
        r"missing embed\.bias: expected \(24,\), found nothing; "
        r"misshapen embed\.prefix: expected \(1, 24\), found \(1, 7\); unexpected extra: expected nothing, found \(2,\)"
    )
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)
    changed(tmp_path, model, tensors={})
    with pytest.raises(ValueError, match=r"(missing [^;]*; ){5}and \d+ more"):
        load_model(tmp_path)


def test_a_tensor_of_whole_numbers_is_refused(tmp_path: Path):
    model = tiny()
    changed(tmp_path, model, tensors=model.state_dict() | {"embed.bias": torch.zeros(24, dtype=torch.int8)})
    with pytest.raises(ValueError, match=r"embed\.bias: expected a floating-point type, found torch\.int8"):
        load_model(tmp_path)


def test_another_kind_is_refused(tmp_path: Path):
    changed(tmp_path, tiny(), kind="decoder")
    with pytest.raises(ValueError, match="must be of kind 'vit' to be loaded as a network; got 'decoder'"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"future": 1}, "settings in .* has unknown fields: future. Upgrade nestor"),
        ({"depth": None}, "settings.depth in .* must be int; got None"),
        ({"depth": True}, "settings.depth in .* must be int; got True"),
        ({"grid": [4]}, r"settings.grid in .* must be tuple"),
        ({"grid": [4, "x"]}, r"settings.grid\[1\] in .* must be int; got 'x'"),
        ({"eps": "small"}, "settings.eps in .* must be float; got 'small'"),
        ({"nest": 3}, "settings.nest in .* must be an object; got 3"),
        ({"nest": {"widths": [24]}}, "settings.nest in .* lacks fields: heads, hidden"),
        ({"nest": {"widths": [24, 8], "hidden": [1, 1], "heads": [1, 1]}}, "widths must increase"),
        ({"scores": ["oracle"], "nest": asdict(NARROWED)}, "scores must be among"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, change: dict[str, object], message: str):
    model = tiny()
    changed(tmp_path, model, settings=asdict(model.settings) | change)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_missing_settings_are_named_unless_they_have_a_default(tmp_path: Path):
    model = tiny(Nest(widths=(24,), hidden=(48,), heads=(4,)))
    settings = asdict(model.settings)
    changed(tmp_path, model, settings={name: settings[name] for name in settings.keys() - {"source"}})
    assert load_model(tmp_path).settings == model.settings
    changed(tmp_path, model, settings={name: settings[name] for name in settings.keys() - {"depth", "patch"}})
    with pytest.raises(ValueError, match=r"settings in .* lacks fields: depth, patch"):
        load_model(tmp_path)
