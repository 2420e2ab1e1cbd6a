"""Photographs from packages of wallpapers: where their squares lie, and which are held out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nestor.data import load_splits
from nestor.data import photographs as module
from nestor.data.photographs import PLACES, Cuts, photographs

NAMES = tuple(f"{letter}/{letter}.png" for letter in "abcdefgh")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pictures, each of one shade of red, whose green grows to the right and whose blue grows downwards."""
    for number, name in enumerate(NAMES):
        pixels = np.zeros((100, 160, 3), dtype=np.uint8)
        pixels[..., 0] = 20 * number
        pixels[..., 1] = np.arange(160)
        pixels[..., 2] = np.arange(100)[:, None]
        (tmp_path / name).parent.mkdir()
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.setattr(module, "NAMES", NAMES)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return tmp_path


def test_squares_lie_where_they_are_said_to(folder: Path):
    cuts = Cuts(tuple(folder / name for name in NAMES))
    assert len(cuts) == 8 * 9
    for index in range(len(cuts)):
        number, place = divmod(index, 9)
        pixels = np.asarray(cuts[index])
        side = (100, 50)[place >= 3]
        assert pixels.shape == (side, side, 3)
        assert (pixels[..., 0] == 20 * number).all()
        share, across, down = PLACES[place]
        assert share == side / 100
        assert pixels[0, 0, 1:].tolist() == [round(across * (160 - side)), round(down * (100 - side))]


def test_the_parts_show_different_photographs(folder: Path):
    train, test = load_splits("photographs", size=16)
    assert (len(train), len(test)) == (6 * 9, 2 * 9)
    assert train.classes == test.classes == ()
    reds = [{int(part.pixels(i)[0, 0, 0]) for i in range(len(part))} for part in (train, test)]
    assert reds == [{0, 20, 40, 80, 100, 120}, {60, 140}]
    assert len({*train.names, *test.names}) == 72
    kept = test.limit(4).cached()
    assert torch.equal(kept.pixels(0), test.limit(4).pixels(0))


def test_a_large_photograph_is_cut_from_a_smaller_copy(tmp_path: Path):
    Image.new("RGB", (2400, 1792)).save(tmp_path / "large.png")
    cuts = Cuts((tmp_path / "large.png",))
    assert [cuts[place].size for place in (0, 8)] == [(896, 896), (448, 448)]


def test_missing_photographs_are_asked_for(folder: Path):
    (folder / "d/d.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"d\.png is missing. Install the photographs: apt install mate-back"):
        photographs("test")
    assert len(photographs("train").items) == 54


def test_no_photograph_is_named_twice():
    assert len(set(module.NAMES)) == len(module.NAMES) == 21
