"""A picture network into a video network that starts from its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from nestor.models.video import VideoSettings, VideoViT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.vit import ViT


@torch.no_grad()
def inflate(
    picture: ViT,
    *,
    frames: int = 8,
    tubelet: int = 2,
    depth: int = 2,
    labels: Sequence[str] = (),
    how: Literal["central", "mean"] = "central",
) -> VideoViT:
    """A video network whose spatial encoder is a picture network, and sees a still clip as that sees its picture.

    Temporal blocks and head are fresh. The picture's own head is left out.

    Args:
        picture: any ViT with a class token; it is not changed.
        frames, tubelet, depth: as in VideoSettings.
        labels: names of the classes of the head; without any, there is none.
        how: what becomes of the embedding's weights: `central`, they read the middle frame of each tubelet and the
            others count nothing at first; `mean`, they read the mean of the frames (ViViT, section 3.4).

    Raises:
        ValueError: when `how` is neither, or the picture network or the numbers do not make a video network.
    """
    if how not in ("central", "mean"):
        raise ValueError(f"how must be central or mean; got {how!r}.")
    space = replace(picture.settings, classes=0, labels=())
    model = VideoViT(
        VideoSettings(
            space=space, frames=frames, tubelet=tubelet, depth=depth, classes=len(labels), labels=tuple(labels)
        )
    )
    state = {name: tensor for name, tensor in picture.state_dict().items() if not name.startswith("head.")}
    flat = state["embed.weight"]
    shares = [1 / tubelet] * tubelet if how == "mean" else [float(i == tubelet // 2) for i in range(tubelet)]
    state["embed.weight"] = torch.cat([share * flat for share in shares], 1)
    model.space.load_state_dict(state)
    return model.train(picture.training)
