"""The two real sets that are known by name: solar cells and clothes."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from nestor.data.huggingface import dataset, from_hub, parts
from nestor.data.listing import Listing

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


class Stack:
    """An array of grey pictures, uint8 (N,H,W), as a sequence of items."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


def elpv(folder: Path | None = None) -> Listing:
    """List the 2,624 electroluminescence pictures of solar cells; defective means a defect probability of 1/2 or more.

    The groups join module type and defect probability, such as 'mono 0.33', so that splits keep the shares of both.

    Args:
        folder: where labels.csv and images/ lie; by default inside the installed package.

    Raises:
        ImportError: the package elpv-dataset is missing.
        FileNotFoundError: a file of the package is missing.
        ValueError: a line of labels.csv cannot be read.
    """
    folder = folder or _elpv_folder()
    table = folder / "labels.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table} is missing. {_ELPV_REPAIR}")
    rows: list[tuple[str, float, str]] = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, probability, module = line.split()
            rows.append((path, float(probability), module))
        except ValueError:
            raise ValueError(
                f"{table} needs a path, a probability and a type in line {number}; got {line!r}."
            ) from None
    for path, _, _ in rows:
        if not (folder / path).is_file():
            raise FileNotFoundError(f"{folder / path} is missing. {_ELPV_REPAIR}")
    return Listing(
        items=tuple(folder / path for path, _, _ in rows),
        names=tuple(path for path, _, _ in rows),
        labels=tuple("defective" if probability >= 0.5 else "functional" for _, probability, _ in rows),
        groups=tuple(f"{module} {probability:.2f}" for _, probability, module in rows),
        classes=("functional", "defective"),
        trusted=True,
    )


def fashion_mnist(part: Literal["train", "test"], *, folder: Path = FASHION_FOLDER) -> Listing:
    """List one part of Fashion-MNIST, grey pictures of clothes, 28 x 28, from idx files or else from the hub.

    Raises:
        ImportError: the files are missing, and so is datasets.
        ValueError: a file is damaged, or the files are missing and the hub cannot give them.
    """
    stem = {"train": "train", "test": "t10k"}[part]
    images, labels = folder / f"{stem}-images-idx3-ubyte.gz", folder / f"{stem}-labels-idx1-ubyte.gz"
    if not (images.is_file() and labels.is_file()):
        return _fashion_from_hub(part, folder)
    pixels, numbers = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or numbers.ndim != 1 or len(pixels) != len(numbers):
        raise ValueError(f"{images.name} and {labels.name} must fit; got shapes {pixels.shape} and {numbers.shape}.")
    if numbers.size and numbers.max() >= len(FASHION_CLASSES):
        raise ValueError(f"labels in {labels.name} must lie in [0, 9]; got {numbers.max()}.")
    return Listing(
        items=Stack(pixels),
        names=tuple(f"{part} {index}" for index in range(len(pixels))),
        labels=tuple(FASHION_CLASSES[number] for number in numbers),
        classes=FASHION_CLASSES,
        trusted=True,
    )


def read_idx(file: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except Exception as error:
        raise ValueError(f"{file} is no readable gzip file: {error}. Install the data set again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{file} is no idx file of unsigned bytes: it begins with {content[:4].hex() or 'nothing'}.")
    shape = tuple(np.frombuffer(content, ">u4", content[3], 4).tolist())
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if values.size != np.prod(shape, dtype=object):
        raise ValueError(f"{file} should hold {shape} values; got {values.size}. Install the data set again.")
    return values.reshape(shape)


_ELPV_REPAIR = "Install the package: pip install --no-deps elpv-dataset==1.0.0.post1"


def _elpv_folder() -> Path:
    # Found without being imported: only its files matter, and its own dependencies need not be there.
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or not package.submodule_search_locations:
        raise ImportError(f"The set elpv travels in the package elpv-dataset. {_ELPV_REPAIR}")
    return Path(package.submodule_search_locations[0]) / "data"


def _fashion_from_hub(part: str, folder: Path) -> Listing:
    repair = f"Its files are not in {folder}. Install them: apt install dataset-fashion-mnist"
    try:
        train, test = parts(from_hub("fashion_mnist"))
    except ImportError as error:
        raise ImportError(f"{error}. {repair}") from error
    except ValueError as error:
        raise ValueError(f"{error}. {repair}") from error
    if test is None:
        raise ValueError(f"the hub's Fashion-MNIST has no test part. {repair}")
    listing = dataset(train if part == "train" else test)
    # The hub spells some names differently; the numbers mean the same.
    names = dict(zip(listing.classes or (), FASHION_CLASSES, strict=True))
    labels = tuple(None if label is None else names[label] for label in listing.labels)
    return replace(listing, labels=labels, classes=FASHION_CLASSES)
