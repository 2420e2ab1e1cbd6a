"""Clips that are drawn once and kept, so that training does not wait for them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from nestor.data.clips import Clips, load_clips
from nestor.data.scan import watch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Drawn(Clips):
    """Clips with all frames in memory, in 256 shades of grey as films have them; otherwise as Clips.

    Attributes:
        kept: uint8 (N, F, 1, size, size).
        order: which frame is shown at each of the F places: all of them one after the other, or another choice, such
            as one frame all the time, which shows what a network knows that sees no motion.

    Raises:
        ValueError: the frames that are kept are not those of the clips, or the order names others.
    """

    kept: Tensor
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = (len(self.pictures), self.frames, 1, self.size, self.size)
        if tuple(self.kept.shape) != wanted or self.kept.dtype != torch.uint8:
            raise ValueError(
                f"kept frames must be uint8 {wanted}; got {str(self.kept.dtype).removeprefix('torch.')} "
                f"{tuple(self.kept.shape)}. Draw them with nestor.data.drawn.drawn."
            )
        if len(self.order) != self.frames or not all(0 <= frame < self.frames for frame in self.order):
            raise ValueError(
                f"order must name one of {self.frames} frames, counted from 0, for each place; got {self.order}."
            )

    def shown(self, index: int) -> Tensor:
        """Give one clip as it is shown, not normalised: (F,3,size,size) in [0, 1]."""
        return (self.kept[index, list(self.order)].float() / 255).expand(-1, 3, -1, -1)

    @property
    def identity(self) -> tuple[object, ...]:
        """All that the items depend on, but for the pixels of the pictures."""
        return (*super().identity, "drawn", self.order)

    def subset(self, indices: Sequence[int]) -> Drawn:
        """Give the clips at these positions, in this order."""
        kept = self.kept[torch.as_tensor(indices, dtype=torch.long)]
        return replace(self, pictures=self.pictures.subset(indices), kept=kept)

    def ordered(self, order: Sequence[int]) -> Drawn:
        """Give the same clips with another frame at each place; `kept` is shared.

        Raises:
            ValueError: the order does not name F frames of a clip.
        """
        return replace(self, order=tuple(order))

    def still(self) -> Drawn:
        """Give the same clips with the middle frame all the time, so that nothing moves; `kept` is shared."""
        return self.ordered([self.frames // 2] * self.frames)

    def stacked(self, count: int) -> Tensor:
        """Give the first clips as one normalised tensor: (count,F,3,size,size), or fewer where there are fewer."""
        return torch.stack([self[i][0] for i in range(min(count, len(self)))])


DrawnParts: TypeAlias = "tuple[Drawn, Drawn]"
"""What is learnt from, and what is judged by."""


def drawn(clips: Clips) -> Drawn:
    """Draw all clips of grey pictures, of which the first channel is kept; a clip takes F * size * size bytes."""
    kept = torch.empty((len(clips), clips.frames, 1, clips.size, clips.size), dtype=torch.uint8)
    for i in watch(range(len(clips)), total=len(clips), what="Drawing clips"):
        kept[i] = (clips.shown(i)[:, :1] * 255).round().to(torch.uint8)
    own = {field.name: getattr(clips, field.name) for field in fields(Clips)}
    return Drawn(**own, kept=kept, order=tuple(range(clips.frames)))


def moving_garments(*, frames: int, size: int, train: int, test: int) -> DrawnParts:
    """Fashion-MNIST in motion, classes being garment and motion together, drawn: so many clips of each part at most.

    Args:
        frames, size: as in Clips.
        train, test: how many clips of each part, with equal shares of every class.

    Raises:
        ValueError: a number lies outside its range.
    """
    learn, judge = load_clips(frames=frames, size=size, by="picture and motion")
    return drawn(learn.limit(train)), drawn(judge.limit(test))
