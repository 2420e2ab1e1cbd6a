"""Moving pictures whose class no single frame can tell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from nestor.data.load import load_splits
from nestor.data.strata import pick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.data.load import Source
    from nestor.data.pictures import Pictures

MOTIONS = ("right", "left", "down", "up", "growing", "shrinking", "turning clockwise", "turning counter-clockwise")

# Each of the four numbers that say how a picture lies goes round a circle once in 8 to 16 frames.
_SLOW, _FAST = 1 / 16, 1 / 8
_SMALL, _LARGE = 0.4, 0.8


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Clips(Dataset["tuple[Tensor, int]"]):
    """Clips of pictures that move over black: items are (normalised float32 (F,3,size,size), label).

    How a picture lies is told by four numbers, each on a circle: its place across and down (what leaves on one side
    comes in on the other), its size (when largest it starts over as smallest, or the reverse) and its angle. All start
    anywhere on their circles; one goes round, at a speed of the clip's own, and which one and which way is the motion.
    So every frame is distributed alike under all motions, and only frames together tell which it is.

    Attributes:
        pictures: what moves; grey on black, such as Fashion-MNIST.
        frames: F, of a clip.
        size: side of a frame in pixels.
        by: what the classes are, `motion`, or `picture and motion`, each class of picture with each motion.
        seed: of the motions; a clip depends on it and on its picture only.

    Raises:
        ValueError: a number lies outside its range, or the pictures have no classes to tell apart.
    """

    pictures: Pictures
    frames: int = 8
    size: int = 32
    by: Literal["motion", "picture and motion"] = "motion"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ValueError(f"a clip needs at least 2 frames, since one tells no motion; got {self.frames}.")
        if self.size < 8:
            raise ValueError(f"size must be at least 8 pixels, to show motion; got {self.size}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0; got {self.seed}.")
        if self.by not in ("motion", "picture and motion"):
            raise ValueError(f"by must be motion or 'picture and motion'; got {self.by!r}.")
        if self.by != "motion" and not self.pictures.classes:
            raise ValueError("the pictures have no classes to tell apart. Use by='motion'.")

    def __len__(self) -> int:
        return len(self.pictures)

    def __repr__(self) -> str:
        return f"Clips({len(self)} of {self.frames} frames of {self.size} px, classes: {', '.join(self.classes)})"

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (self.shown(index) - mean) / std, self.labels[index]

    def shown(self, index: int) -> Tensor:
        """Give one clip as it is shown, not normalised: (F,3,size,size) in [0, 1]."""
        motion = self.motions[index]
        # The 1 keeps them apart from the draws of the motions.
        draws = np.random.default_rng((self.seed, 1, self.pictures.rows[index])).random(5)
        speed = (_SLOW + (_FAST - _SLOW) * draws[4]) * (1, -1)[motion % 2]
        place = np.repeat(draws[:4, None], self.frames, 1)
        place[motion // 2] += speed * np.arange(self.frames)
        return _drawn(self.pictures.pixels(index).float() / 255, torch.from_numpy(place % 1).float(), self.size)

    @cached_property
    def motions(self) -> tuple[int, ...]:
        """Positions in MOTIONS."""
        # One number for each row up to the last, so that a row keeps its motion in every subset.
        draws = np.random.default_rng(self.seed).random(max(self.pictures.rows, default=-1) + 1)
        return tuple((draws[list(self.pictures.rows)] * len(MOTIONS)).astype(int).tolist())

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        if self.by == "motion":
            return MOTIONS
        return tuple(f"{name} {motion}" for name in self.pictures.classes for motion in MOTIONS)

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """Positions in classes; -1 when unlabelled."""
        if self.by == "motion":
            return self.motions
        pairs = zip(self.pictures.labels, self.motions, strict=True)
        return tuple(-1 if label < 0 else label * len(MOTIONS) + motion for label, motion in pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each clip, for messages and reports."""
        return tuple(
            f"{name} {MOTIONS[motion]}" for name, motion in zip(self.pictures.names, self.motions, strict=True)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor of one item."""
        return (self.frames, 3, self.size, self.size)

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from each channel of values in [0, 1]."""
        return self.pictures.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Divides each channel after that."""
        return self.pictures.std

    @property
    def identity(self) -> tuple[object, ...]:
        """All that the items depend on, but for the pixels of the pictures."""
        return (self.pictures.identity, self.frames, self.size, self.by, self.seed)

    def subset(self, indices: Sequence[int]) -> Clips:
        """Give the clips at these positions, in this order."""
        return replace(self, pictures=self.pictures.subset(indices))

    def limit(self, count: int, *, seed: int = 0) -> Clips:
        """Give at most `count` clips, drawn with equal shares of every class.

        Raises:
            ValueError: count is below 1.
        """
        if count < 1:
            raise ValueError(f"a limit must be at least 1 clip; got {count}.")
        if count >= len(self):
            return self
        least = int(count >= len(set(self.labels)))
        return self.subset(pick(self.labels, (), count, seed=seed, least=least))

    def with_epoch(self, epoch: int) -> Clips:
        """Give the same clips: nothing about them is random from one epoch to the next."""
        return self


Examples: TypeAlias = "Pictures | Clips"
"""What a network can be trained on."""


def load_clips(
    source: Source = "fashion-mnist",
    *,
    frames: int = 8,
    size: int = 32,
    by: Literal["motion", "picture and motion"] = "motion",
    seed: int = 0,
) -> tuple[Clips, Clips]:
    """Clips for training and for testing, one of each picture of the source's two parts, with motions of their own.

    Raises:
        FileNotFoundError, ImportError, ValueError: as in `load_splits`; or a number lies outside its range.
    """
    train, test = load_splits(source, size=28, seed=seed)
    return (
        Clips(pictures=train, frames=frames, size=size, by=by, seed=2 * seed),
        Clips(pictures=test, frames=frames, size=size, by=by, seed=2 * seed + 1),
    )


def _drawn(picture: Tensor, place: Tensor, size: int) -> Tensor:
    """A picture (C, h, w) laid F times as places (4, F) on the unit circles say: (F, C, size, size)."""
    across, down, scale, angle = place
    # A growing picture grows by the same factor from frame to frame.
    side = _SMALL * (_LARGE / _SMALL) ** scale
    cos, sin = torch.cos(2 * torch.pi * angle) / side, torch.sin(2 * torch.pi * angle) / side
    pixel = (torch.arange(size) + 0.5) / size
    # From the picture's centre, the nearer way round, in [-1, 1).
    x, y = (2 * ((pixel - centre.unsqueeze(1) + 0.5) % 1 - 0.5) for centre in (across, down))
    x, y = torch.broadcast_tensors(x.unsqueeze(1), y.unsqueeze(2))
    cos, sin = cos.view(-1, 1, 1), sin.view(-1, 1, 1)
    # Down is positive, so that this turns what is seen clockwise as the angle grows.
    grid = torch.stack([cos * x + sin * y, cos * y - sin * x], -1)
    return F.grid_sample(picture.expand(len(side), -1, -1, -1), grid, align_corners=False)
