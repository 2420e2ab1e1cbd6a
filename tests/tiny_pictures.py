"""Small sets of pictures whose classes a network can tell apart, and lists of them that do something when read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from nestor.data import Pictures


class Watched(list):
    """A list of pictures that calls a function at the n-th reading, counted from 1."""

    def __init__(self, items: list, at: int, call: Callable[[], object]):
        super().__init__(items)
        self.at, self.call, self.read = at, call, 0

    def __getitem__(self, index):
        self.read += 1
        if self.read == self.at:
            self.call()
        return super().__getitem__(index)


def watched(pictures: Pictures, at: int, call: Callable[[], object]) -> Pictures:
    """The same pictures from a list that calls a function at the n-th reading."""
    return replace(pictures, items=Watched([pictures.items[i] for i in range(len(pictures.items))], at, call))


def shapes(count: int = 12, *, classes: int = 2, size: int = 16, labelled: bool = True, seed: int = 0) -> Pictures:
    """Noise with a bright square whose place tells the class."""
    rng = np.random.default_rng(seed)
    labels = [index % classes for index in range(count)]
    items = []
    for label in labels:
        values = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
        place = label * size // classes
        values[place : place + size // 4, place : place + size // 4] += 120
        items.append(Image.fromarray(values))
    return Pictures(
        items=items,
        rows=tuple(range(count)),
        size=size,
        classes=tuple(f"c{label}" for label in range(classes)) if labelled else (),
        labels=tuple(labels) if labelled else (-1,) * count,
        names=tuple(map(str, range(count))),
    )


def paint(folder: Path, colour: tuple[int, int, int], count: int) -> None:
    """Fill a folder with noisy pictures of a colour."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(sum(colour))
    for number in range(count):
        pixels = rng.normal(colour, 40, (20, 24, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
