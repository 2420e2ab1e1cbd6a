"""Runs of `nestor fit` from files and again from their folders; results as JSON; shell completion."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_pictures import paint
from tiny_vit import DENSE, NARROWED, tiny
from typer.testing import CliRunner

import nestor
from nestor import Fit
from nestor.cli import app
from nestor.cli.job import Job
from nestor.programs.openvino import Program
from nestor.training import Sampled

ROOT = Path(__file__).parent.parent


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: Any) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: Any) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return next(line for line in result.stderr.splitlines() if line.startswith("Error: "))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Pictures of two classes, a dense network and an elastic one."""
    paint(tmp_path / "photos" / "red", (200, 60, 60), 6)
    paint(tmp_path / "photos" / "blue", (60, 60, 200), 6)
    nestor.save(tiny(DENSE), tmp_path / "dense")
    nestor.save(tiny(NARROWED, classes=2, labels=("blue", "red")), tmp_path / "elastic")
    return tmp_path


def same(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def fit(home: Path, *more: Any) -> Any:
    return done("fit", home / "elastic", "--data", home / "photos", "--epochs", 1, "--batch", 4, *more)


def test_a_run_is_repeated_from_its_folder(home: Path):
    more = ("--teacher", home / "dense", "--flip", "--rate", 1e-3, "--lowest", 0.4, "--seed", 3, "--no-validate")
    fit(home, "--out", home / "one", *more)
    said = tomllib.loads((home / "one" / "run.toml").read_text())
    assert said["model"] == str(home / "elastic")
    assert (said["size"], said["validate"]) == (16, False)
    assert said["fit"]["budgets"] == {"type": "Sampled", "low": 0.4, "high": 0.75, "full": 0.1}
    done("fit", "--config", home / "one" / "run.toml", "--out", home / "two")
    assert same(home / "one", home / "two")
    assert not same(home / "one", home / "elastic")
    assert tomllib.loads((home / "two" / "run.toml").read_text()) == said
    done("fit", "--config", home / "one" / "run.toml", "--out", home / "three", "--seed", 4)
    assert not same(home / "one", home / "three")


def test_what_a_run_began_with_must_still_be_there(home: Path):
    fit(home)
    again = ("fit", "--config", home / "elastic" / "run.toml", "--out", home / "two")
    assert "the network at " in refused(*again)
    assert "changed since the run of" in refused(*again)
    nestor.save(tiny(NARROWED, classes=2, labels=("blue", "red")), home / "other")
    fit(home, "--out", home / "one")
    (home / "photos" / "red" / "0.png").unlink()
    again = ("fit", "--config", home / "one" / "run.toml", "--out", home / "two")
    assert "the training pictures at" in refused(*again)
    assert not (home / "two").exists()
    lines = (home / "one" / "run.toml").read_text().splitlines()
    (home / "new.toml").write_text("\n".join(line for line in lines if not line.startswith("pictures")))
    done("fit", "--config", home / "new.toml", "--out", home / "two")


def test_settings_are_read_from_a_file_and_the_command_line_goes_before_it(home: Path):
    (home / "my.yaml").write_text(
        f"model: {home / 'elastic'}\ndata: {home / 'photos'}\nout: {home / 'result'}\nvalidate: false\n"
        "fit:\n  epochs: 2\n  batch: 4\n  budgets: {type: Fixed, budget: 0.7}\n"
    )
    record = json.loads(done("fit", "--config", home / "my.yaml", "--epochs", 1, "--json").stdout)
    assert record["folder"] == str(home / "result")
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1]
    assert "accuracy" not in record["epochs"][0]
    assert record["settings"]["budgets"] == {"type": "Fixed", "budget": 0.7}
    assert record["settings"]["batch"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modle = "x"', "the run in {file} has unknown fields: modle. Upgrade nestor, or remove them; it knows model"),
        ("size = 1.5", "the run.size in {file} must be"),
        ("fit = 3", "fit in {file} must be a table of settings; got 3"),
        ("[fit]\nrate = -1.0", "rate must be above 0; got -1.0"),
        ('model = "{home}/elastic"', "fit needs a MODEL and --data"),
        ('model = "{home}/elastic"\ndata = "{home}/photos"', "names no folder for its result, so that fit needs"),
    ],
)
def test_wrong_files_are_refused_in_one_line(home: Path, text: str, message: str):
    file = home / "run.toml"
    file.write_text(text.format(home=home))
    more = ("--out", home / "new", home / "elastic", "--data", home / "photos") if "fit" in text else ()
    assert message.format(file=file) in refused("fit", "--config", file, *more)
    assert not (home / "new").exists()


def test_the_command_line_has_the_defaults_of_the_settings(home: Path):
    fit(home, "--out", home / "one", "--epochs", 10)
    settings = tomllib.loads((home / "one" / "run.toml").read_text())["fit"]
    usual = Fit()
    assert settings["epochs"] == usual.epochs
    assert settings["rate"] == usual.rate
    assert usual.budgets == Sampled(low=settings["budgets"]["low"])
    assert "augment" not in settings
    assert Job().validate


def test_results_as_json_stand_alone_on_standard_output(home: Path):
    nested = json.loads(
        done(
            "nest", home / "dense", "--data", home / "photos", "--out", home / "new", "--shape", ".5,1", "--json"
        ).stdout
    )
    assert nested["widths"] == [12, 24]
    assert 0 < nested["least_budget"] < 1
    picture = home / "photos" / "red" / "0.png"
    shown = json.loads(
        done("show", home / "elastic", picture, "--budgets", ".6,1", "--out", home / "a.png", "--json").stdout
    )
    assert [sum(row["patches"]) for row in shown["budgets"]] == [16, 16]
    assert shown["budgets"][1]["class"] in ("blue", "red")
    assert shown["budgets"][0]["macs"] < shown["budgets"][1]["macs"]
    command = ("profile", home / "elastic", "--data", home / "photos", "--budgets", "1", "--batches", "1")
    profile = json.loads(done(*command, "--precisions", "float32", "--out", home / "p.json", "--json").stdout)
    assert profile == json.loads((home / "p.json").read_text())


def test_shells_can_complete_without_loading_torch():
    """Through the shells' own protocol; the words typed so far are in the environment."""
    code = (
        "import sys\ntry:\n    from nestor.cli import main\n    main()\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )

    def completed(words: str, count: int) -> list[str]:
        asked = {"_NESTOR_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"} | asked
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, text=True, capture_output=True, timeout=120
        )
        assert found.stderr.splitlines()[-1] == "False", found.stderr
        return found.stdout.split()

    assert {"profile", "prove"} <= set(completed("nestor pro", 1))
    assert "--config" in completed("nestor fit --con", 2)


def test_a_network_is_made_ready_for_eight_bits(home: Path):
    net = home / "elastic"
    result = done("quantize", net, "--data", home / "photos", "--pictures", 4, "--batch", 2, "--rounds", 1, "--json")
    found = json.loads(result.stdout)
    assert found["file"] == str(net / "int8.safetensors")
    assert found["budgets"][0]["budget"] == 1
    assert all(row["likeness_int8"] > 0.9 * row["likeness"] for row in found["budgets"])
    shown = done("quantize", net, "--data", home / "photos", "--pictures", 4, "--budgets", "1", "--rounds", 1)
    assert "float32, cosine" in shown.stdout
    assert "nestor serve" in shown.stderr
    file = net.parent / "programs" / "eight.xml"
    how = ("--precision", "int8", "--out")
    done("export", net, "--format", "openvino", *how, file)
    assert Program(file).facts["products"] == "int8"
    assert "eight bits are for programs in the format openvino" in refused(
        "export", net, *how, file.with_suffix(".onnx")
    )
    assert "holds no network that Nestor saved" in refused("quantize", home / "none", "--data", home / "photos")
    assert "precision must be float32, bfloat16 or int8; got 'int4'" in refused("serve", net, "--precision", "int4")
