"""After `import nestor` alone transformers opens our folders, and nobody else pays for it."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_vit import NARROWED, tiny
from transformers import CONFIG_MAPPING, AutoConfig

import nestor
from nestor import auto
from nestor.hub import NestorConfig
from nestor.models.saved import TRANSFORMERS

ROOT = Path(__file__).parent.parent
# As after `pip install 'nestor[hub]'`, which brings no torchvision.
BARE = "import sys\nsys.modules['torchvision'] = None\n"
FIRST = "import nestor\nfrom transformers import {name}\n"
LAST = "from transformers import {name}\nimport nestor\n"
USES = {
    "AutoConfig": "assert AutoConfig.from_pretrained({folder!r}).id2label == {{0: 'fine', 1: 'broken'}}",
    "AutoModelForImageClassification": "import torch\n"
    "model = AutoModelForImageClassification.from_pretrained({folder!r})\n"
    "model.budget = 0.6\nassert model(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 2)",
    "pipeline": "from PIL import Image\nclassify = pipeline('image-classification', model={folder!r})\n"
    "assert {{said['label'] for said in classify(Image.new('RGB', (20, 20)))}} == {{'fine', 'broken'}}",
}


def run(code: str) -> str:
    """What a fresh interpreter prints that runs this."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("order", [FIRST, LAST], ids=["nestor first", "transformers first"])
def test_importing_nestor_is_enough(tmp_path: Path, name: str, order: str):
    nestor.save(tiny(NARROWED, classes=2, labels=("fine", "broken"), head="class_mean"), tmp_path)
    run(BARE + order.format(name=name) + USES[name].format(folder=str(tmp_path)))


def test_who_opens_no_folder_of_ours_loads_nothing_of_ours():
    loaded = "print(sorted(name for name in sys.modules if name.startswith('nestor')), *sys.meta_path)"
    said = run(
        f"{BARE}import nestor\nfrom transformers import AutoConfig, AutoModel\nAutoConfig.for_model('vit')\n{loaded}"
    )
    assert said.startswith("['nestor', 'nestor.auto']")
    assert "nestor.auto._Awaiting" not in said


def test_transformers_itself_loads_torch_no_earlier():
    script = BARE + "{}import transformers\nprint('torch' in sys.modules)"
    assert run(script.format("import nestor\n")) == run(script.format(""))


def test_the_true_classes_replace_what_stood_for_them():
    assert auto.MODEL_TYPE == TRANSFORMERS == NestorConfig.model_type
    assert CONFIG_MAPPING[auto.MODEL_TYPE] is NestorConfig
    nestor.auto.announce()
    assert CONFIG_MAPPING[auto.MODEL_TYPE] is NestorConfig
    assert isinstance(AutoConfig.for_model(auto.MODEL_TYPE), NestorConfig)


def test_what_stands_for_the_config_makes_it():
    assert isinstance(auto._Unopened(), NestorConfig)
    unopened: Any = auto._Unopened
    assert unopened.from_dict == NestorConfig.from_dict
    assert not hasattr(unopened, "__abstractmethods__")


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of transformers that is not loaded yet, and what waits for it."""
    monkeypatch.setattr(auto, "AUTO", "told_late")
    monkeypatch.setattr(sys, "meta_path", [auto._Awaiting(), *sys.meta_path])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "told_late", raising=False)
    registered: list[str] = []
    monkeypatch.setattr(auto, "_register", lambda module: registered.append(module.__name__))
    return SimpleNamespace(file=tmp_path / "told_late.py", registered=registered)


def import_late() -> ModuleType:
    return importlib.import_module("told_late")


def test_waiting_ends_with_the_module_and_leaves_no_trace_on_it(waiting: Any):
    waiting.file.write_text("VALUE = 3\n")
    nestor.auto.announce()
    assert [type(finder) for finder in sys.meta_path].count(auto._Awaiting) == 1
    assert importlib.util.find_spec("told_late") is not None
    assert not waiting.registered
    module = import_late()
    assert (module.VALUE, waiting.registered) == (3, ["told_late"])
    assert not any(isinstance(finder, auto._Awaiting) for finder in sys.meta_path)
    own = PathFinder.find_spec("told_late")
    assert own is not None
    assert module.__spec__ is not None
    assert type(module.__loader__) is type(module.__spec__.loader) is type(own.loader)


def test_waiting_goes_on_after_a_failure(waiting: Any):
    with pytest.raises(ModuleNotFoundError, match="told_late"):
        import_late()
    waiting.file.write_text("raise RuntimeError('not yet')\n")
    importlib.invalidate_caches()
    with pytest.raises(RuntimeError, match="not yet"):
        import_late()
    assert not waiting.registered
    waiting.file.write_text("VALUE = 'now it is there'\n")
    assert import_late().VALUE == "now it is there"
    assert waiting.registered == ["told_late"]
