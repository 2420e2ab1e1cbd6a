"""Every example of the documentation runs, on a tiny network in the place of the real one."""

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from stories import ROOT, Story, stories, tell
from tiny_pictures import paint
from tiny_vit import tiny

import nestor
from nestor.data.listing import Listing
from nestor.data.named import elpv
from nestor.layers.nested import Nest
from nestor.measure.clock import race
from nestor.surgery.nest import shape


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has at hand: pictures, and networks under the names that the examples use."""
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("world")
    for name, colour in (("fine", (60, 60, 200)), ("broken", (200, 60, 60))):
        paint(folder / "photos" / name, colour, 6)
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.glob("photos/*/*.png"))]
    (folder / "photos.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    Image.new("RGB", (120, 150), (90, 120, 60)).save(folder / "photo.jpg")
    # Wide enough for attention, which no budget makes cheaper per token, to be a small part.
    dense = tiny(Nest(widths=(192,), hidden=(768,), heads=(4,)), patch=14, grid=(8, 8), nominal=112)
    nestor.save(dense, folder / "dinov2-small")
    nestor.save(
        nestor.nest(dense, folder / "photos", shape=shape(192, 768, 4, merge=0.0), head="class_mean"),
        folder / "elastic",
    )
    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=16,
        patch_size=4,
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "vit")
    return folder


def few() -> Listing:
    """Some solar cells of both classes."""
    whole = elpv()
    rows = slice(None, None, len(whole.items) // 48)
    items = tuple(whole.items[i] for i in range(0, len(whole.items), rows.step))
    return replace(whole, items=items, names=whole.names[rows], labels=whole.labels[rows], groups=whole.groups[rows])


# PEFT asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("story", stories(), ids=lambda story: story.name)
def test_examples_run_as_printed(story: Story, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nestor.hub import NestorForImageClassification

    home = tmp_path / "home"
    shutil.copytree(world, home)
    if story.makes_its_network:
        shutil.rmtree(home / "elastic")
    monkeypatch.chdir(home)
    monkeypatch.setattr(NestorForImageClassification, "push_to_hub", lambda self, name: None)
    # By its full name, since the package has a function of the module's name.
    monkeypatch.setattr(import_module("nestor.data.load"), "elpv", few)
    # How fast a tiny network is nobody wants to know.
    for module in ("profile", "latency"):
        monkeypatch.setattr(f"nestor.measure.{module}.race", lambda calls, **given: race(calls, rounds=1, warmup=0))
    tell(story, {"images": torch.randn(2, 3, 112, 112)}, monkeypatch)


def test_a_wrong_example_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def told(language: str, text: str) -> None:
        tell(Story(name="wrong", blocks=((language, text),)), {}, monkeypatch)

    with pytest.raises(AttributeError):
        told("python", "import nestor\nnestor.nst")
    with pytest.raises(AssertionError, match="--no-such-option"):
        told("bash", "nestor show elastic/ photo.jpg --no-such-option")
    for line in ("make tea", "pip install 'nestor[tea]'", "tea"):
        with pytest.raises(AssertionError):
            told("console", line)
    with pytest.raises(AssertionError, match="what it is called"):
        told("toml", "epochs = 2")
    with pytest.raises(AssertionError, match="nobody can run"):
        told("", "nestor --version")


def test_the_notebook_runs_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in book.cells)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "model.safetensors" in json.dumps(outputs[-1])
