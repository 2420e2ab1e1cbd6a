"""The command line, from a folder of pictures to drawings, on a tiny network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_pictures import paint
from typer.testing import CliRunner

import nestor
from nestor.cli import app

ROOT = Path(__file__).parent.parent


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: Any) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: Any) -> str:
    """The one line that a refused command says."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def drawn(file: Path) -> int:
    with Image.open(file) as picture:
        return picture.width


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, one file that is none, and two networks as transformers saves them."""
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("home")
    paint(folder / "photos" / "red", (200, 60, 60), 8)
    paint(folder / "photos" / "blue", (60, 60, 200), 8)
    (folder / "photos" / "red" / "broken.png").write_bytes(b"no picture")
    paint(folder / "one_class" / "red", (200, 60, 60), 4)
    paint(folder / "loose", (60, 200, 60), 4)
    (folder / "empty").mkdir()
    sizes = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "image_size": 16,
        "patch_size": 4,
    }
    config: Any = transformers.ViTConfig
    vit = transformers.ViTModel(config(hidden_size=16, **sizes), add_pooling_layer=False)
    vit.save_pretrained(folder / "vit")
    three = transformers.ViTForImageClassification(config(hidden_size=16, num_labels=3, **sizes))
    three.save_pretrained(folder / "three")
    wide = transformers.ViTForImageClassification(config(hidden_size=32, num_labels=3, **sizes))
    wide.save_pretrained(folder / "wide")
    return folder


@pytest.fixture(scope="module")
def elastic(home: Path) -> Path:
    done("nest", home / "vit", "--data", home / "photos", "--out", home / "elastic", "--shape", "4,8,12,16")
    return home / "elastic"


@pytest.fixture(scope="module")
def fitted(home: Path, elastic: Path) -> Path:
    said = done(
        *("fit", elastic, "--data", home / "photos", "--teacher", home / "vit", "--out", home / "fitted"),
        *("--epochs", 2, "--batch", 4, "--flip", "--tensorboard", home / "logs"),
    )
    assert "gets a fresh one for 2: blue, red" in said.stderr
    return home / "fitted"


def test_nesting_tells_what_was_made_and_what_was_left_out(home: Path, tmp_path: Path):
    said = done("nest", home / "vit", "--data", home / "photos", "--out", tmp_path / "new", "--pictures", 5)
    assert "1 pictures cannot be read and are left out, first red/broken.png" in said.stderr
    widths = nestor.load(tmp_path / "new").settings.nest.widths
    assert f"widths {', '.join(map(str, widths))}; " in said.stdout
    assert len(widths) > 1
    written = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert written == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_a_nested_network_is_the_original_at_full_budget(home: Path, elastic: Path):
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        dense, nested = nestor.load(home / "vit")(images).tokens, nestor.load(elastic)(images).tokens
    assert ((dense - nested).norm() / dense.norm()).item() < 2e-5


def test_fitting_gives_a_head_a_record_and_curves(home: Path, elastic: Path, fitted: Path):
    model = nestor.load(fitted)
    assert model.settings.labels == ("blue", "red")
    assert nestor.load(elastic).settings.classes == 0
    assert len(json.loads((fitted / "fit.json").read_text())["epochs"]) == 2
    written = ["config.json", "fit.json", "model.safetensors", "preprocessor_config.json", "run.toml"]
    assert sorted(path.name for path in fitted.iterdir()) == written
    assert list((home / "logs").glob("events.*"))


def test_profile_prints_a_table_and_writes_numbers_and_curves(home: Path, fitted: Path, tmp_path: Path):
    said = done(
        *("profile", fitted, "--data", home / "photos", "--budgets", ".6,1", "--batches", 1, "--dense", fitted),
        *("--precisions", "float32", "--out", tmp_path / "a" / "p.json", "--plot", tmp_path / "p.png", "--limit", 4),
    )
    assert "accuracy" in said.stdout
    numbers = json.loads((tmp_path / "a" / "p.json").read_text())
    assert [point["budget"] for point in numbers["networks"][0]["points"]] == [1.0, 0.6]
    assert numbers["pictures"] == 4
    assert drawn(tmp_path / "p.png") > 100


def test_a_head_for_other_classes_is_measured_by_likeness(home: Path):
    said = done("profile", home / "wide", "--data", home / "photos", "--batches", 1, "--precisions", "float32")
    assert "The head knows 3 classes and the pictures have 2" in said.stderr
    assert "cosine" in said.stdout


def test_show_draws_and_predicts(home: Path, fitted: Path, tmp_path: Path):
    picture = home / "photos" / "red" / "0.png"
    said = done("show", fitted, picture, "--budgets", ".6,1", "--out", tmp_path / "routing.png")
    assert "width 16" in said.stdout
    assert "red (" in said.stdout or "blue (" in said.stdout
    assert drawn(tmp_path / "routing.png") > 100


def test_without_budgets_those_that_fit_are_taken(home: Path, elastic: Path, tmp_path: Path):
    said = done("show", elastic, home / "photos" / "red" / "0.png", "--out", tmp_path / "r.svg")
    shown = [line.split()[0] for line in said.stdout.splitlines() if line.strip()[:1] in ("0", "1")]
    least = nestor.load(elastic).least_budget(16)
    assert shown == [f"{budget:g}" for budget in (0.3, 0.5, 0.7, 1) if budget >= least]


@pytest.mark.parametrize(
    ("shape", "widths"), [("published", [2, 4, 8, 16]), ("8,16", [8, 16]), ("0,.5,1", [0, 8, 16]), ("1", [16])]
)
def test_shapes(home: Path, tmp_path: Path, shape: str, widths: list[int]):
    done("nest", home / "vit", "--data", home / "loose", "--out", tmp_path, "--shape", shape)
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["nest"]["widths"] == widths


def test_a_head_can_be_fitted_while_nesting(home: Path, tmp_path: Path):
    done("nest", home / "wide", "--data", home / "photos", "--out", tmp_path, "--head", "class", "--size", 20)
    settings = nestor.load(tmp_path).settings
    assert (settings.head, settings.labels, settings.nominal) == ("class", ("blue", "red"), 20)


def test_an_interrupted_fit_goes_on_to_the_same_weights(
    home: Path, elastic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from nestor.training.report import Report

    def fit(out: Path) -> Any:
        return run(
            "fit", elastic, "--data", home / "photos", "--epochs", 2, "--batch", 4, "--rate", "1e-3", "--out", out
        )

    assert fit(tmp_path / "whole").exit_code == 0
    step = Report.step

    def cut(self: Report, done: int, **facts: Any) -> None:
        if done == 5:
            raise KeyboardInterrupt
        step(self, done, **facts)

    monkeypatch.setattr(Report, "step", cut)
    stopped = fit(tmp_path / "cut")
    assert stopped.exit_code == 130
    assert "Interrupted." in stopped.stderr
    assert (tmp_path / "cut" / "checkpoint").is_dir()
    monkeypatch.setattr(Report, "step", step)
    assert fit(tmp_path / "cut").exit_code == 0
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "cut" / "checkpoint").exists()


def test_a_network_is_replaced_only_on_request(home: Path, tmp_path: Path):
    command = ("nest", home / "vit", "--data", home / "loose", "--out", tmp_path / "out")
    done(*command)
    assert "holds a network already" in refused(*command)
    done(*command, "--overwrite", "--shape", "8,16")
    assert nestor.load(tmp_path / "out").settings.nest.widths == (8, 16)


def test_foreign_networks_are_never_replaced(home: Path):
    before = (home / "vit" / "config.json").read_bytes()
    nest = ("nest", home / "vit", "--data", home / "loose", "--out", home / "vit", "--overwrite")
    assert "holds another network's config.json" in refused(*nest)
    assert "holds another network's config.json" in refused("fit", home / "vit", "--data", home / "photos")
    assert (home / "vit" / "config.json").read_bytes() == before


NEST = ("nest", "{home}/vit", "--data", "{home}/photos", "--out", "{new}")
FIT = ("fit", "{elastic}", "--data", "{home}/photos", "--out", "{new}")
PROFILE = ("profile", "{elastic}", "--data", "{home}/photos")
SHOW = ("show", "{elastic}", "{home}/photos/red/0.png", "--out", "{new}.png")


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (NEST, {"{home}/vit": "{home}/none"}, "which is nothing here"),
        (NEST, {"{home}/vit": "{elastic}"}, "with one expert; this one has 4"),
        (NEST, {"{home}/photos": "{home}/none"}, "there is no file or folder"),
        (NEST, {"{home}/photos": "{home}/empty"}, "empty"),
        (NEST, {"{new}": "{home}/photos/red/0.png/out"}, "must be a folder that can be written"),
        ((*NEST, "--size", "18"), {}, "multiple of the patch, 4; got 18"),
        ((*NEST, "--shape", "wide"), {}, "shape (unless default or published) must be numbers"),
        ((*NEST, "--shape", "8,4,16"), {}, "widths must increase"),
        ((*NEST, "--shape", "4,8"), {}, "the last width must be the whole network's, 16"),
        ((*NEST, "--head", "tail"), {}, "a fresh head reads class, mean or class_mean; got 'tail'"),
        ((*NEST, "--head", "class"), {"{home}/photos": "{home}/one_class"}, "at least 2 classes; got 1: red"),
        ((*NEST, "--head", "class"), {"{home}/photos": "{home}/loose"}, "training needs labels"),
        ((*FIT, "--teacher", "{home}/wide"), {}, "a teacher must have the network's own width, 16; got 32"),
        ((*FIT, "--teacher", "{home}/three"), {}, "the teacher has 3 classes and the network 2"),
        ((*FIT, "--precision", "int4"), {}, "precision must be float32 or bfloat16; got 'int4'"),
        ((*FIT, "--epochs", "0"), {}, "epochs must be at least 1"),
        ((*FIT, "--rate", "nan"), {}, "rate must be above 0; got nan"),
        ((*FIT, "--jitter", "2"), {}, "jitter must lie in [0, 1)"),
        (FIT, {"{home}/photos": "{home}/one_class"}, "at least 2 classes; got 1: red"),
        (FIT, {"{home}/photos": "{home}/loose"}, "without a teacher"),
        (("fit", "dinov2-small", "--data", "{home}/photos"), {}, "Give --out"),
        (("fit", "{elastic}"), {}, "fit needs a MODEL and --data"),
        (("fit", "--data", "{home}/photos"), {}, "fit needs a MODEL and --data"),
        ((*FIT, "--config", "{home}/none.toml"), {}, "there is no file"),
        ((*PROFILE, "--budgets", "half"), {}, "budgets must be numbers parted by commas"),
        ((*PROFILE, "--budgets", ".01"), {}, "budget must lie in ["),
        ((*PROFILE, "--batches", "1.5"), {}, "batches must be whole numbers"),
        ((*PROFILE, "--precisions", "float8"), {}, "precisions must be among"),
        ((*PROFILE, "--plot", "{new}.bmp"), {}, "must end with one of .png, .svg, .pdf"),
        ((*PROFILE, "--out", "{home}/photos"), {}, "must be a file that can be written"),
        (SHOW, {"{home}/photos/red/0.png": "{home}/none.png"}, "no such picture"),
        (SHOW, {"{home}/photos/red/0.png": "{home}/photos/red/broken.png"}, "not a picture in a format"),
        (SHOW, {"{elastic}": "{home}/vit"}, "routing needs an elastic network"),
        ((*SHOW, "--budgets", "2"), {}, "budget must lie in ["),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(
    home: Path, elastic: Path, tmp_path: Path, command: tuple[str, ...], changes: dict[str, str], message: str
):
    names = {"home": home, "elastic": elastic, "new": tmp_path / "new"}
    assert message in refused(*(changes.get(word, word).format(**names) for word in command))
    assert not list(tmp_path.iterdir())


def test_debug_shows_where_an_error_arose(home: Path, tmp_path: Path):
    result = run("--debug", "nest", home / "none", "--data", home / "photos", "--out", tmp_path)
    assert isinstance(result.exception, FileNotFoundError)


def test_faults_of_ours_are_one_line_unless_asked_for_more(home: Path, elastic: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("nestor.api.prepare.load_model", broken)
    asked = ("profile", elastic, "--data", home / "photos")
    result = run(*asked)
    assert (result.exit_code, "Traceback" in result.stderr) == (70, False)
    assert "RuntimeError: a fault. This should not happen; --debug shows where it does." in result.stderr
    for told in (("--debug", *asked), (*asked, "--debug")):
        assert isinstance(run(*told).exception, RuntimeError)


def test_ctrl_c_ends_with_130(home: Path, elastic: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setattr("nestor.api.train", interrupted)
    result = run("fit", elastic, "--data", home / "photos", "--out", home / "never")
    assert (result.exit_code, "stopped after step 3" in result.stderr) == (130, True)


def test_version_and_help_as_a_process():
    # Warnings of other packages' start are not ours to turn into errors.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}

    def process(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=environment, text=True, capture_output=True, timeout=120
        )

    version = process("-m", "nestor.cli", "--version")
    assert (version.returncode, version.stdout.strip()) == (0, f"nestor {nestor.__version__}")
    failed = process("-m", "nestor.cli", "show", "none", "none.png", "--budgets", "x")
    assert failed.returncode == 2
    assert failed.stderr == "Error: budgets must be numbers parted by commas, like .3,.5,1; got 'x'.\n"
    # Whoever has a broken torchvision, as beside torch without CUDA, must still be able to train.
    loaded = process(
        "-c",
        "import sys, nestor.cli; print('torch' in sys.modules); import accelerate; nestor.fit, nestor.data;"
        "print(sorted({'transformers', 'torchvision', 'timm', 'datasets', 'matplotlib'} & sys.modules.keys()))",
    )
    assert loaded.stdout.split("\n")[:2] == ["False", "[]"], loaded.stderr


def test_python_takes_values_as_well_as_names(home: Path):
    """The five lines of the front's description, on pictures that were loaded before."""
    dense = nestor.load(home / "vit")
    pictures = nestor.data.load(home / "photos", size=20)
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    model = nestor.nest(dense, pictures, shape=nestor.Nest(widths=(8, 16), hidden=(16, 32), heads=(4, 4)), pictures=4)
    assert (model.settings.nominal, dense.settings.nominal) == (20, 16)
    fitted = nestor.fit(model, pictures, nestor.Fit(epochs=1, batch=8))
    fitted.budget = 0.8
    assert fitted(torch.zeros(1, 3, 20, 20)).logits.shape == (1, 2)
    assert all(torch.equal(tensor, state[name]) for name, tensor in dense.state_dict().items())
    assert model.settings.classes == 0
    with pytest.raises(ValueError, match=r"budget must lie in"):
        nestor.nest(dense, pictures, budget=0.01)


def test_several_processes_share_the_work_where_there_is_no_accelerator(
    home: Path, elastic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = {}
    monkeypatch.setattr("nestor.api.train", lambda *arguments, **more: given.update(more))
    command = ("fit", elastic, "--data", home / "photos", "--out", tmp_path)
    done(*command)
    assert given["cpu"] is not torch.accelerator.is_available()
    done(*command, "--cpu")
    assert given["cpu"] is True


def test_the_front_lists_what_it_has():
    assert set(nestor.__all__) <= set(dir(nestor))
    assert all(getattr(nestor, name) is not None for name in nestor.__all__)
    with pytest.raises(AttributeError, match="nestor has no 'nothing'"):
        _ = nestor.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.callback.__name__)
def test_every_command_shows_an_example_and_speaks_json(command: Any):
    name = command.callback.__name__
    told = run(name, "--help").stdout
    assert f"Example: nestor {name}" in told
    assert "--json" in told or name in ("nest", "show")
