"""The core alone, as `pip install .` leaves it: what works without any extra, and what each command then asks for."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from tiny_vit import NARROWED, tiny

import nestor

ROOT = Path(__file__).parent.parent
# What an extra brings, as it is imported; numpy and pillow come with the core.
EXTRAS = (
    *("accelerate", "yaml", "tensorboard", "pandas", "pyarrow", "datasets", "sklearn", "huggingface_hub", "onnx"),
    *("matplotlib", "onnxscript", "onnxruntime", "fastapi", "uvicorn", "python_multipart", "prometheus_client"),
    *("opentelemetry", "ray", "transformers", "gradio", "peft", "scipy", "timm", "torchvision"),
)
# A module that is None cannot be imported and cannot be found.
ALONE = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
ASKED = """
import json
from typer.testing import CliRunner
from nestor.cli import app
said = []
for line in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, line)
    said.append((result.exit_code, result.output))
print(json.dumps(said))
"""


def run(code: str, *arguments: str) -> str:
    """What an interpreter prints that runs this and has the core only."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "500"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE + code, *arguments], env=environment, text=True, capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network and pictures of two classes."""
    nestor.save(tiny(NARROWED, classes=2, labels=("broken", "fine"), head="class_mean"), tmp_path / "elastic")
    for name in ("fine", "broken"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (16, 16), (40 * number, 80, 10)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path


def test_networks_are_made_saved_and_run_and_every_command_says_what_it_is_for(folder: Path):
    lines = [
        *([command, "--help"] for command in ("nest", "fit", "profile", "clock", "show", "demo", "export", "serve")),
        ["recipes", "mone", "--json"],
        ["nest", str(folder / "elastic"), "--data", str(folder / "photos"), "--out", str(folder / "again")],
        ["profile", str(folder / "elastic"), "--data", str(folder / "photos"), "--limit", "4", "--budgets", "1,.6"],
        ["clock", str(folder / "elastic"), "--batches", "1"],
    ]
    for line, (code, said) in zip(lines, json.loads(run(ASKED, json.dumps(lines))), strict=True):
        wanted = 2 if line[0] == "nest" and len(line) > 2 else 0
        assert code == wanted, f"{line}: {said}"
        # What is elastic already is refused for that, and not for something that is missing.
        assert "nestor[" not in said or line[-1] == "--help", f"{line}: {said}"


def test_each_command_says_which_extra_it_needs_before_any_work(folder: Path):
    elastic, photos, picture = folder / "elastic", folder / "photos", folder / "photos/fine/0.png"
    wanted = {
        ("fit", str(elastic), "--data", str(photos)): "train",
        ("show", str(elastic), str(picture), "--out", str(folder / "shown.png")): "plot",
        ("demo", str(elastic)): "page",
        ("export", str(elastic), "--budget", "0.6", "--out", str(folder / "net.onnx")): "export",
        ("serve", str(elastic)): "serve",
        ("nest", "someone/vit", "--data", str(photos), "--out", str(folder / "new")): "pretrained",
    }
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    answers = json.loads(run(ASKED, json.dumps(list(wanted))))
    for (line, extra), (code, said) in zip(wanted.items(), answers, strict=True):
        assert extra in extras
        assert (code, f"nestor[{extra}]" in said) == (2, True), f"{line}: {said}"
    assert sorted(path.name for path in folder.iterdir()) == ["elastic", "photos"]
