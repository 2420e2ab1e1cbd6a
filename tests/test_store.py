"""Things on disk: whole or not at all, and every kind of damage named."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from nestor import store
from nestor.types import Stored

OLD = Stored(kind="thing", settings={"a": 1, "b": [1, 2]}, tensors={"x": torch.arange(6.0).view(2, 3)})
NEW = Stored(kind="thing", settings={"a": 2, "b": []}, tensors={"x": torch.zeros(4)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store.save(OLD, tmp_path / "deep" / "thing")
    return tmp_path / "deep" / "thing"


def assert_old(folder: Path) -> None:
    found = store.load(folder)
    assert (found.kind, found.settings) == (OLD.kind, OLD.settings)
    assert torch.equal(found.tensors["x"], OLD.tensors["x"])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_save_replaces_the_one_before_and_leaves_two_files(folder: Path):
    assert_old(folder)
    store.save(NEW, folder)
    assert store.load(folder).settings == NEW.settings
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_config_is_readable_and_the_weights_bear_its_hash(folder: Path):
    text = (folder / "config.json").read_bytes()
    expected = {"format": "nestor", "version": 1, "kind": "thing", "settings": {"a": 1, "b": [1, 2]}}
    assert json.loads(text) == expected
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata()["config"] == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_tensors_come_back_bit_for_bit_whatever_their_memory(tmp_path: Path, kind: torch.dtype):
    whole = (torch.randn(4, 6) * 100).to(kind)
    tensors = {"view": whole[:, 1:3], "turned": whole.T, "same": whole, "scalar": whole[0, 0], "none": whole[:0]}
    store.write_tensors(tmp_path / "t.safetensors", tensors, {"note": "hello"})
    found, metadata = store.read_tensors(tmp_path / "t.safetensors")
    assert metadata["note"] == "hello"
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == kind
        assert torch.equal(found[name], tensor)


def test_text_is_written_as_it_is(tmp_path: Path):
    store.write_text(tmp_path / "a" / "note.txt", "grün\nblau\n")
    assert (tmp_path / "a" / "note.txt").read_bytes() == "grün\nblau\n".encode()


def full_weights(*args: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_sync(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("where", "what"), [("save_file", full_weights), ("os.fsync", full_sync)])
def test_a_full_disk_says_how_much_was_needed_and_harms_nothing(folder: Path, monkeypatch, where: str, what):
    monkeypatch.setattr(f"nestor.store.{where}", what)
    with pytest.raises(
        OSError, match=r"the disk is full: .*model\.safetensors needs 16 bytes, [\d,]+ are free"
    ) as caught:
        store.save(NEW, folder)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert_old(folder)


def test_a_disk_that_fills_up_with_the_second_file_harms_nothing(folder: Path, monkeypatch):
    sync, calls = os.fsync, []

    def second(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            full_sync(descriptor)
        sync(descriptor)

    monkeypatch.setattr("nestor.store.os.fsync", second)
    with pytest.raises(OSError, match=r"the disk is full: .*config\.json needs \d+ bytes"):
        store.save(NEW, folder)
    monkeypatch.undo()
    assert_old(folder)


def test_an_interruption_while_writing_harms_nothing(folder: Path, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nestor.store.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(NEW, folder)
    monkeypatch.undo()
    assert_old(folder)


def test_a_save_killed_between_its_two_files_is_noticed(folder: Path, monkeypatch):
    replace = os.replace

    def once(old: Path, new: Path) -> None:
        replace(old, new)
        raise KeyboardInterrupt

    monkeypatch.setattr("nestor.store.os.replace", once)
    with pytest.raises(KeyboardInterrupt):
        store.save(NEW, folder)
    with pytest.raises(ValueError, match="do not belong together: one was edited, or a save was interrupted"):
        store.load(folder)


def test_files_take_their_places_together_or_not_at_all(tmp_path: Path):
    paths = [tmp_path / "new" / name for name in ("b", "a")]
    with store.together(paths) as stage:
        for path in paths:
            (stage / path.name).write_text("first")
        assert not any(path.exists() for path in paths)
    with pytest.raises(FileNotFoundError), store.together(paths) as stage:
        (stage / "b").write_text("second")
    with pytest.raises(KeyboardInterrupt), store.together(paths) as stage:
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == {"a": "first", "b": "first"}


def test_settings_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(Stored(kind="thing", settings={"a": object()}, tensors={}), tmp_path / "x")
    with pytest.raises(ValueError, match="Out of range float"):
        store.save(Stored(kind="thing", settings={"a": float("nan")}, tensors={}), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_is_missing_is_named(folder: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        store.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none"):
        store.read_tensors(tmp_path / "none")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        store.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        store.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_cut_off_weights_are_refused(folder: Path, keep: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut off or no safetensors file"):
        store.load(folder)


def test_garbage_weights_are_refused(folder: Path):
    (folder / "model.safetensors").write_bytes(b"\x80\x04" + b"garbage" * 99)
    with pytest.raises(ValueError, match=r"model\.safetensors is cut off or no safetensors file"):
        store.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json is not JSON"),
        ("\ufffd[]", r"config\.json is not JSON"),
        ("[]", r"config\.json was not written by Nestor"),
        ('{"model_type": "vit"}', r"config\.json was not written by Nestor"),
        (
            '{"format": "nestor", "version": 2}',
            r"written by a newer Nestor: format version 2, this one reads up to 1\. Upgrade nestor\.",
        ),
        ('{"format": "nestor", "version": "x"}', "needs version 1, kind and settings"),
        ('{"format": "nestor", "version": 1, "kind": "thing"}', "needs version 1, kind and settings"),
    ],
)
def test_a_broken_config_is_refused(folder: Path, text: str, message: str):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        store.load(folder)


def test_an_edited_config_is_refused(folder: Path):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"a": 1', '"a": 3'))
    with pytest.raises(ValueError, match="do not belong together"):
        store.load(folder)
