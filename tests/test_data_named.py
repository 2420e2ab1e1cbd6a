"""The named sets: the real solar cells, and Fashion-MNIST from small files of the same format."""

import gzip
import importlib.util
import shutil
import struct
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from nestor.data import load, load_splits
from nestor.data.named import FASHION_CLASSES, elpv, fashion_mnist, read_idx


def write_idx(file: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    file.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for stem, count in (("train", 20), ("t10k", 10)):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_the_solar_cells_are_all_there():
    cells = load("elpv", size=32)
    assert len(cells) == 2624
    assert cells.classes == ("functional", "defective")
    assert Counter(cells.labels) == {0: 1803, 1: 821}
    assert Counter(group.split()[0] for group in cells.groups) == {"mono": 1074, "poly": 1550}
    assert {group.split()[1] for group in cells.groups} == {"0.00", "0.33", "0.67", "1.00"}
    image, label = cells[0]
    assert (image.shape, label, cells.names[0]) == ((3, 32, 32), 1, "images/cell0001.png")
    assert cells.limit(6).cached().cache is not None
    assert cells.limit(6).cached().cache.shape == (6, 1, 32, 32)  # pyright: ignore[reportOptionalMemberAccess]


def test_the_split_of_the_solar_cells_is_fixed_and_stratified():
    train, test = load_splits("elpv", size=32)
    assert (len(train), len(test)) == (1968, 656)
    assert Counter(test.labels) == {0: 451, 1: 205}
    whole, held = (
        Counter((label, group) for label, group in zip(s.labels, s.groups, strict=True))
        for s in (load("elpv", size=32), test)
    )
    assert all(abs(held[stratum] - count / 4) <= 1 for stratum, count in whole.items())
    assert not set(train.names) & set(test.names)
    assert load_splits("elpv", size=64)[1].names == test.names
    assert load_splits("elpv", size=32, seed=1)[1].names != test.names


def test_a_missing_or_damaged_package_of_solar_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match=r"labels\.csv is missing.*pip install --no-deps elpv-dataset"):
        elpv(tmp_path)
    (tmp_path / "labels.csv").write_text("images/a.png  0.5   mono\n\n")
    with pytest.raises(FileNotFoundError, match=r"a\.png is missing.*pip install"):
        elpv(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "images" / "a.png")
    assert (elpv(tmp_path).labels, elpv(tmp_path).groups) == (("defective",), ("mono 0.50",))
    (tmp_path / "labels.csv").write_text("images/a.png,0.5,mono\n")
    with pytest.raises(ValueError, match=r"in line 1; got 'images/a.png,0.5,mono'"):
        elpv(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps elpv-dataset==1\.0\.0\.post1"):
        load("elpv", size=8)


def test_clothes_come_in_two_parts_of_resized_grey(clothes: Path, monkeypatch: pytest.MonkeyPatch):
    train = fashion_mnist("train", folder=clothes)
    assert (len(train.items), len(fashion_mnist("test", folder=clothes).items)) == (20, 10)
    assert train.labels[:10] == train.classes == FASHION_CLASSES
    pixels = read_idx(clothes / "train-images-idx3-ubyte.gz")
    assert (np.asarray(train.items[3]) == pixels[3]).all()
    # `load` finds the parts by name alone, so the folder is put in the place of the installed one.
    monkeypatch.setattr(fashion_mnist, "__kwdefaults__", {"folder": clothes})
    pictures, held_out = load_splits("fashion-mnist", size=56)
    assert (len(pictures), len(held_out)) == (20, 10)
    assert pictures[0][0].shape == (3, 56, 56)
    assert len(load("fashion-mnist", size=28)) == 20
    assert (load("fashion-mnist", size=28).pixels(3).numpy() == pixels[3]).all()


def test_clothes_from_the_hub_bear_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets.disable_progress_bars()
    names = ["T - shirt / top", *FASHION_CLASSES[1:]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [Image.new("L", (28, 28), 5)] * 2, "label": [0, 9]}
    data = datasets.DatasetDict({part: datasets.Dataset.from_dict(rows, features) for part in ("train", "test")})
    monkeypatch.setattr(datasets, "load_dataset", {"fashion_mnist": data}.__getitem__)
    for part in ("train", "test"):
        listing = fashion_mnist(part, folder=tmp_path)
        assert listing.classes == FASHION_CLASSES
        assert listing.labels == ("T-shirt/top", "Ankle boot")


def test_clothes_that_are_nowhere_tell_how_to_install_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str):
        raise ConnectionError("no way out")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"no way out.*apt install dataset-fashion-mnist"):
        fashion_mnist("train", folder=tmp_path)


def test_damaged_files_of_clothes(clothes: Path):
    labels = clothes / "train-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"train-labels.* no readable gzip file"):
        fashion_mnist("train", folder=clothes)
    labels.write_bytes(gzip.compress(b"\0\0\x0d\x01"))
    with pytest.raises(ValueError, match="no idx file of unsigned bytes: it begins with 00000d01"):
        fashion_mnist("train", folder=clothes)
    labels.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(ValueError, match=r"should hold \(20,\) values; got 19"):
        fashion_mnist("train", folder=clothes)
    write_idx(labels, np.full(20, 10, np.uint8))
    with pytest.raises(ValueError, match=r"must lie in \[0, 9\]; got 10"):
        fashion_mnist("train", folder=clothes)
    shutil.copy(clothes / "t10k-labels-idx1-ubyte.gz", labels)
    with pytest.raises(ValueError, match=r"must fit; got shapes \(20, 28, 28\) and \(10,\)"):
        fashion_mnist("train", folder=clothes)
