"""`nestor doctor`, and that its advice is what commands say and what pyproject.toml declares."""

import importlib.util
import json
import os
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_pictures import paint
from tiny_vit import DENSE, NARROWED, tiny
from typer.testing import CliRunner

import nestor
from nestor.cli import app
from nestor.cli.doctor import NEEDS

ROOT = Path(__file__).parent.parent
# The command of the same name hides the module from `import`.
DOCTOR = sys.modules["nestor.cli.doctor"]
ALL = sorted({name for need in NEEDS for name in need.modules})


def asked(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, result.output


def only(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Make these modules look missing, and all others that doctor asks for look present."""

    def find_spec(name: str) -> Any:
        return None if name in missing else importlib.util.find_spec("json")

    monkeypatch.setattr(DOCTOR, "find_spec", find_spec)
    monkeypatch.setattr(DOCTOR, "_broken", lambda need: None)


def test_nothing_is_missing(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch)
    code, said = asked()
    assert code == 0
    assert "missing" not in said
    assert f"nestor         {nestor.__version__}" in re.sub(r"(?<=nestor) +", " " * 9, said)
    assert re.search(r"threads +\d+", said)


def test_what_is_missing_is_named_with_its_repair(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch, "pyarrow")
    code, said = asked()
    assert code == 1
    line = next(line for line in said.splitlines() if "missing" in line)
    assert "CSV and Parquet" in line
    assert "missing pyarrow: pip install 'nestor[data]'" in line


@pytest.mark.parametrize("module", ALL)
def test_only_the_commands_asked_about_count(monkeypatch: pytest.MonkeyPatch, module: str):
    only(monkeypatch, module)
    for command in sorted({name for need in NEEDS for name in need.commands}):
        concerned = any(module in need.modules for need in NEEDS if command in need.commands)
        code, said = asked(command, "--json")
        found = json.loads(said)
        assert (code, found["ok"]) == ((1, False) if concerned else (0, True))
        assert {name for need in found["needs"] for name in need["missing"]} == ({module} if concerned else set())


def test_json_holds_machine_and_versions(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch)
    found = json.loads(asked("--json")[1])
    assert found["machine"]["nestor"] == nestor.__version__
    assert found["fault"] is None
    assert found["versions"]["torch"].startswith(found["machine"]["torch"].split("+")[0])


def test_transformers_beside_a_torchvision_that_does_not_fit_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    about = tmp_path / "torchvision-0.28.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    code, said = asked("import nestor.hub", "--json")
    found = json.loads(said)
    assert (code, found["ok"]) == (1, False)
    (need,) = found["needs"]
    assert need["missing"] == []
    assert need["broken"] == (
        "nestor.hub needs transformers, which imports torchvision where it is installed, and torchvision 0.28.0 does "
        f"not fit torch {version('torch')} (operator torchvision::nms does not exist). Uninstall it: pip uninstall "
        "torchvision; or install the build that fits torch."
    )


def test_what_is_installed_and_broken_is_no_more_there_than_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch)
    monkeypatch.setattr(DOCTOR, "_broken", lambda need: "cannot be" if need.proof else None)
    code, said = asked()
    assert code == 1
    assert [line.split()[0] for line in said.splitlines() if "cannot be" in line] == ["import"]
    assert asked("fit")[0] == 0


def test_a_proof_that_ends_without_a_word_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DOCTOR.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-11, stderr=""))
    need = next(need for need in NEEDS if need.proof)
    assert DOCTOR._broken(need) == "import nestor.hub ended with -11"


def test_a_broken_torch_is_a_finding_not_a_crash(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch)
    monkeypatch.setitem(sys.modules, "nestor.measure.clock", None)
    code, said = asked("show")
    assert code == 1
    assert "torch cannot be imported" in said


def test_an_unknown_command_is_refused():
    result = CliRunner().invoke(app, ["doctor", "walk"])
    assert result.exit_code == 2
    assert (
        "Error: doctor knows clock, demo, export, fit, import nestor.hub, nest, profile, prove, quantize, "
        "recipes, serve, show; got walk." in result.stderr
    )


def test_every_extra_brings_what_doctor_says_it_brings():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {extra: {re.split(r"[\[<>=~]", line)[0] for line in lines} for extra, lines in declared.items()}
    named = 0
    for need in NEEDS:
        if extra := re.search(r"nestor\[(\w+)\]", need.install):
            assert {"yaml": "pyyaml"}.get(need.modules[0], need.modules[0]) in packages[extra[1]], need
            assert {"yaml": "pyyaml"}.get(need.modules[-1], need.modules[-1]) in packages[extra[1]], need
            named += 1
    assert named >= 8
    # A cluster, traces, and what the library's own developers need, are not for everybody.
    apart = ("ray", "telemetry", "all", "docs", "test", "dev")
    assert declared["all"] == [f"nestor[{','.join(name for name in declared if name not in apart)}]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    paint(tmp_path / "photos" / "red", (200, 60, 60), 2)
    paint(tmp_path / "photos" / "blue", (60, 60, 200), 2)
    nestor.save(tiny(NARROWED, classes=2, labels=("blue", "red")), tmp_path / "elastic")
    nestor.save(tiny(DENSE), tmp_path / "dense")
    (tmp_path / "photos.csv").write_text("path,label\nred/0.png,red\n")
    (tmp_path / "run.yaml").write_text("fit: {}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("accelerate", "fit {home}/elastic --data {home}/photos --out {home}/new"),
        ("yaml", "fit {home}/elastic --data {home}/photos --config {home}/run.yaml --out {home}/new"),
        ("tensorboard", "fit {home}/elastic --data {home}/photos --out {home}/new --tensorboard {home}/logs"),
        ("pandas", "nest {home}/dense --data {home}/photos.csv --out {home}/new"),
        ("datasets", "profile {home}/elastic --data someone/pictures"),
        ("huggingface_hub", "nest someone/network --data {home}/photos --out {home}/new"),
        ("onnx", "nest dinov2-small --data {home}/photos --out {home}/new"),
        ("matplotlib", "show {home}/elastic {home}/photos/red/0.png"),
        ("gradio", "demo {home}/elastic"),
        ("matplotlib", "demo {home}/elastic"),
        ("matplotlib", "profile {home}/elastic --data {home}/photos --plot {home}/a.png"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(
    home: Path, monkeypatch: pytest.MonkeyPatch, module: str, command: str
):
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    if module == "tensorboard":
        for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
            monkeypatch.delitem(sys.modules, name)
    result = CliRunner().invoke(app, command.format(home=home).split())
    assert result.exit_code == 2, result.output
    need = next(n for n in NEEDS if module in n.modules and command.split()[0] in n.commands)
    said = result.stderr.replace("\n", " ")
    assert "Error: " in said
    assert need.install in said
