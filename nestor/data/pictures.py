"""A set of pictures: a map-style dataset that is a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from nestor.data.decode import MAX_PIXELS, decode, open_picture, square
from nestor.data.scan import for_all
from nestor.data.strata import pick

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image
    from torch import Tensor

    from nestor.data.augment import Augment
    from nestor.data.clips import Examples
    from nestor.data.decode import Items

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pictures(Dataset["tuple[Tensor, int]"]):
    """Pictures of one size with labels, ready for a DataLoader: items are (normalised float32 (3,size,size), label).

    Attributes:
        items: where the pixels come from: paths, encoded bytes or PIL pictures.
        rows: which items belong to this set, in order.
        size: side of the square, in pixels.
        classes: names of the classes; () when unlabelled.
        labels: positions in classes; -1 when unlabelled.
        names: a path or a number for each picture, for messages and reports.
        groups: a name for each picture, whose shares splits keep; () when there is none.
        skipped: one line for each picture left out while loading: name and why.
        mean: subtracted from each channel of values in [0, 1].
        std: divides each channel after that.
        max_pixels: larger pictures are refused.
        augment: random changes; None for none.
        seed: of the random changes.
        epoch: of the random changes.
        cache: decoded pixels, uint8 (N,1 or 3,size,size); None to decode each time.

    Raises:
        ValueError: size below 1, mean or std that are not three numbers with std above 0, negative seed or
            epoch, or fields of unequal length.
    """

    items: Items
    rows: tuple[int, ...]
    size: int
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    max_pixels: int = MAX_PIXELS
    augment: Augment | None = None
    seed: int = 0
    epoch: int = 0
    cache: Tensor | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel; got {self.size}. Vision transformers often take 224.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean and std need three numbers each, std above 0; got {self.mean} and {self.std}. "
                "Take those of the network's own preprocessing."
            )
        if min(self.seed, self.epoch) < 0:
            raise ValueError(f"seed and epoch must be at least 0; got {self.seed} and {self.epoch}.")
        lengths = {len(self.rows), len(self.labels), len(self.names), len(self.groups or self.rows)}
        if len(lengths) > 1:
            raise ValueError(f"rows, labels, names and groups must be equally long; got lengths {sorted(lengths)}.")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        left_out = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"Pictures({len(self)} of {self.size} px, classes: {', '.join(self.classes) or 'none'}{left_out})"

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.pixels(index)
        if self.augment is None:
            image = pixels.float() / 255
        else:
            image = self.augment(pixels, seed=self.seed, epoch=self.epoch, row=self.rows[index])
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (image - mean) / std, self.labels[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor of one item."""
        return (3, self.size, self.size)

    @property
    def identity(self) -> tuple[object, ...]:
        """All that the items of an epoch depend on, but for the pixels."""
        return (self.names, self.labels, self.classes, self.size, self.mean, self.std, self.augment, self.seed)

    def pixels(self, index: int) -> Tensor:
        """Give one picture as it is shown, neither augmented nor normalised: uint8 (3,size,size).

        Raises:
            FileNotFoundError: the file has vanished since the set was loaded.
            ValueError: the file can no longer be read.
        """
        if self.cache is not None:
            return self.cache[index].expand(3, -1, -1)
        return self._decoded(index, open_picture)

    def subset(self, indices: Sequence[int]) -> Pictures:
        """Give the pictures at these positions, in this order."""
        return replace(
            self,
            rows=tuple(self.rows[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices) if self.groups else (),
            cache=None if self.cache is None else self.cache[torch.as_tensor(indices, dtype=torch.long)],
        )

    def limit(self, count: int, *, seed: int = 0) -> Pictures:
        """Give at most `count` pictures, drawn with equal shares of every class and group.

        Raises:
            ValueError: count is below 1.
        """
        if count < 1:
            raise ValueError(f"a limit must be at least 1 picture; got {count}.")
        if count >= len(self):
            return self
        least = int(count >= len(set(self.labels)))
        return self.subset(pick(self.labels, self.groups, count, seed=seed, least=least))

    def stacked(self, count: int | None = None) -> Tensor:
        """(N, 3, H, W): all pictures, or the first `count` where there are more."""
        return torch.stack([self[i][0] for i in range(min(len(self), len(self) if count is None else count))])

    def at(self, size: int) -> Pictures:
        """Give the same pictures at another size; a cache is dropped unless the size stays."""
        return self if size == self.size else replace(self, size=size, cache=None)

    def augmented(self, augment: Augment | None, *, seed: int = 0) -> Pictures:
        """Give the same pictures with random changes that depend on seed, epoch and picture only."""
        return replace(self, augment=augment, seed=seed)

    def with_epoch(self, epoch: int) -> Pictures:
        """Give the same pictures with the random changes of another epoch."""
        return replace(self, epoch=epoch)

    def cached(self) -> Pictures:
        """Decode all pictures now and keep them, at N x size x size bytes when all are grey, three times that else."""
        if self.cache is not None or not len(self):
            return self

        def pixels(index: int) -> Tensor:
            image = self._decoded(index, decode)
            return image[:1] if torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]) else image

        kept = torch.empty(len(self), 1, self.size, self.size, dtype=torch.uint8)
        for index, image in enumerate(for_all(pixels, len(self), what="Decoding pictures")):
            if image.shape[0] > kept.shape[1]:
                kept = kept.repeat(1, 3, 1, 1)
            kept[index] = image
        return replace(self, cache=kept)

    def _decoded(self, index: int, read: Callable[..., Image.Image]) -> Tensor:
        name = self.names[index]
        try:
            return square(read(self.items[self.rows[index]], at_least=self.size, max_pixels=self.max_pixels), self.size)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{name} has vanished since the set was loaded ({error}). Put it back, or load the set again."
            ) from error
        except ValueError as error:
            raise ValueError(f"{name} can no longer be read: {error}. Mend it, or load the set again.") from error


def require_classes(pictures: Examples, count: int = 2) -> None:
    """Check that a set can be trained on: labels, and pictures of at least `count` classes.

    Raises:
        ValueError: the set is unlabelled, or has pictures of fewer classes.
    """
    if not pictures.classes or min(pictures.labels, default=-1) < 0:
        raise ValueError(
            f"training needs labels; these {len(pictures)} pictures have none. "
            "Put them into one sub-folder a class, or give a table with a label column."
        )
    present = sorted({pictures.classes[label] for label in pictures.labels})
    if len(present) < count:
        raise ValueError(
            f"training needs pictures of at least {count} classes; got {len(present)}: {', '.join(present)}. "
            "Add pictures of another class."
        )
