"""Model cards, and what is uploaded with them."""

import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from PIL import Image
from tiny_vit import DENSE, NARROWED, tiny
from transformers import PreTrainedModel

import nestor
from nestor.hub import NestorForImageClassification, NestorModel, model_card, write_card
from nestor.measure.clock import Timing
from nestor.measure.record import Latency, Network, Point, Profile, Quality

SETTINGS = tiny(NARROWED, classes=2, labels=("fine", "broken"), source="packaged:dinov2-small").settings
TIMING = Timing(median_ms=4.0, low_ms=3.5, high_ms=4.5, rounds=3)
LATENCIES = (Latency(batch=1, precision="float32", timing=TIMING, speed_up=1.25, efficiency=0.75),)


def measured() -> Profile:
    def point(budget: float, accuracy: float) -> Point:
        macs = int(1e9 * budget)
        return Point(budget=budget, macs=macs, ratio=budget, quality=Quality(accuracy=accuracy), latencies=LATENCIES)

    dense = Network(name="dense", parameters=5_000_000, weight_bytes=20_000_000, points=(point(1.0, 0.9),))
    nested = replace(dense, name="nested", points=(point(1.0, 0.9), point(0.5, 0.8765)))
    return Profile(size=16, pictures=321, dense=dense, networks=(nested,), machine={"processor": "a chip"})


def header(card: str) -> dict[str, Any]:
    empty, front, _ = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front)


def test_the_header_is_what_the_hub_reads():
    card = model_card(SETTINGS, name="someone/elastic")
    assert header(card) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["nestor", "vision", "elastic", "mixture-of-experts"],
        "base_model": "facebook/dinov2-small",
    }
    assert "# someone/elastic\n" in card
    assert 'pipeline("image-classification", model="someone/elastic")' in card
    assert "classify.model.budget = 0.5" in card
    assert "2 classes apart: fine, broken." in card


def test_what_is_not_known_of_the_source_is_said():
    card = model_card(replace(SETTINGS, source="timm:some_vit"), name="x/y")
    assert (header(card)["license"], header(card)["license_name"]) == ("other", "unknown")
    assert "made from `timm:some_vit`, whose licence is not recorded" in card
    told = model_card(replace(SETTINGS, source="timm:some_vit"), name="x/y", licence="mit")
    assert header(told)["license"] == "mit"
    assert "license_name" not in header(told)
    assert "made from `timm:some_vit`, under mit" in told


def test_a_name_with_yaml_in_it_does_no_harm():
    card = model_card(replace(SETTINGS, labels=("a: b", "---")), name="x/y")
    assert header(card)["pipeline_tag"] == "image-classification"


def test_networks_without_head_or_experts_are_described_as_such():
    card = model_card(tiny(DENSE).settings, name="x/y")
    assert header(card)["pipeline_tag"] == "image-feature-extraction"
    assert 'AutoModel.from_pretrained("x/y")' in card
    assert "budget" not in card


def test_the_code_in_a_card_is_code():
    for settings in (SETTINGS, tiny(DENSE).settings):
        code = model_card(settings, name="x/y").split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")


def test_measurements_become_a_table_and_a_picture(tmp_path: Path):
    (tmp_path / "profile.json").write_text(measured().to_json())
    write_card(tmp_path, SETTINGS, name="x/y", profile=tmp_path / "profile.json")
    card = (tmp_path / "README.md").read_text()
    assert "| network | budget | GMACs | of dense | weights | MB | accuracy |" in card
    assert "| nested | 0.50 | 0.5 | 50.0% | 5.0 M | 20 | 0.8765 |" in card
    assert "On 321 pictures of 16 pixels" in card
    assert "| nested | 0.50 | 4.0  1.25x 0.75 |" in card
    assert "![accuracy at every budget](curve.png)" in card
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 100
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {8, 4}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a hub that is none was asked for."""
    calls: list[dict[str, Any]] = []

    def create_repo(self: Any, name: str, **more: Any) -> Any:
        calls.append({"verb": "create", "name": name, **more})
        return SimpleNamespace(repo_id=f"someone/{name}" if "/" not in name else name)

    def create_branch(self: Any, name: str, **more: Any) -> None:
        calls.append({"verb": "branch", "name": name, **more})

    def upload_folder(self: Any, *, folder_path: str, **more: Any) -> str:
        folder = Path(folder_path)
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        calls.append({"verb": "upload", "files": files, **more})
        return "the commit"

    for function in (create_repo, create_branch, upload_folder):
        monkeypatch.setattr(huggingface_hub.HfApi, function.__name__, function)
    return calls


def test_a_push_uploads_network_card_and_curve(hub: list[dict[str, Any]], tmp_path: Path):
    nestor.save(tiny(NARROWED, classes=2, labels=("a", "b")), tmp_path)
    (tmp_path / "profile.json").write_text(measured().to_json())
    model = NestorForImageClassification.from_pretrained(tmp_path)
    assert model.push_to_hub("someone/elastic", private=True, licence="mit") == "the commit"
    create, upload = hub
    assert (create["name"], create["private"]) == ("someone/elastic", True)
    wanted = {"README.md", "config.json", "curve.png", "model.safetensors", "preprocessor_config.json"}
    assert upload["files"].keys() == wanted
    assert upload["repo_id"] == "someone/elastic"
    assert header(upload["files"]["README.md"].decode())["license"] == "mit"


def test_saving_can_push_too(hub: list[dict[str, Any]], tmp_path: Path):
    model = NestorModel.from_nestor(tiny(NARROWED))
    model.save_pretrained(tmp_path / "elastic", push_to_hub=True, commit_message="first")
    create, upload = hub
    assert (create["name"], upload["commit_message"]) == ("elastic", "first")
    assert "curve.png" not in upload["files"]
    model.push_to_hub("a/b", revision="other")
    assert [(call["verb"], call.get("branch")) for call in hub[2:]] == [
        ("create", None),
        ("branch", "other"),
        ("upload", None),
    ]


COMMIT = {"commit_message": "first", "commit_description": "of many", "create_pr": True}


@pytest.mark.parametrize("verb", ["push_to_hub", "save_pretrained"])
def test_pushing_takes_the_keywords_of_transformers(hub: list[dict[str, Any]], tmp_path: Path, verb: str):
    model, asked = NestorModel.from_nestor(tiny(NARROWED)), {**COMMIT, "private": True, "max_shard_size": "1GB"}
    asked |= {"tags": ["solar", "vision"], "revision": "other", "token": "secret"}
    if verb == "push_to_hub":
        assert model.push_to_hub("a/b", **asked) == "the commit"
    else:
        model.save_pretrained(tmp_path / "elastic", push_to_hub=True, repo_id="a/b", **asked)
    create, upload = hub
    assert (create["name"], create["private"]) == ("a/b", True)
    assert upload.items() >= {**COMMIT, "revision": "other"}.items()
    tags = header(upload["files"]["README.md"].decode())["tags"]
    assert tags == ["nestor", "vision", "elastic", "mixture-of-experts", "solar"]


def test_what_transformers_can_be_asked_on_a_push_so_can_we():
    def keywords(verb: Any) -> set[str]:
        return {name for name, each in inspect.signature(verb).parameters.items() if each.kind != each.VAR_KEYWORD}

    assert keywords(NestorModel.push_to_hub) >= keywords(PreTrainedModel.push_to_hub)
    assert keywords(NestorModel.save_pretrained) >= keywords(PreTrainedModel.save_pretrained)


def test_a_keyword_that_nobody_knows_is_refused(hub: list[dict[str, Any]], tmp_path: Path):
    with pytest.raises(TypeError, match="walk"):
        NestorModel.from_nestor(tiny(NARROWED)).save_pretrained(tmp_path, push_to_hub=True, walk=True)
    assert not hub


def test_what_was_pushed_can_be_loaded_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model = tiny(NARROWED)
    nestor.save(model, tmp_path)
    asked = []

    def snapshot(name: str, **more: Any) -> str:
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert nestor.load("someone/elastic").settings == model.settings
    assert asked == ["someone/elastic"]
