"""Video transformers with random weights, to be trained from nothing, and with another spatial encoder."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nestor.models.scratch import place, scratch, widest
from nestor.models.video import VideoSettings, VideoViT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.layers.nested import Nest
    from nestor.models.vit import ViT


def scratch_video(
    labels: Sequence[str],
    *,
    side: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    frames: int,
    tubelet: int,
    temporal: int,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    seed: int = 0,
) -> VideoViT:
    """An ordinary network for square clips; `with_space` gives it a spatial encoder that was made elastic.

    Args:
        labels: names of the classes.
        side: of the frames, in pixels.
        patch: side of a patch; it divides that of the frames.
        width, depth, heads: of the spatial encoder, whose hidden layers are four times as wide.
        frames, tubelet: as in VideoSettings.
        temporal: blocks that look back in time.
        mean, std: of the frames' channels.
        seed: of the weights; torch's own generator stays as it is.

    Raises:
        ValueError: when patch and side, heads and width, or frames and tubelet do not fit.
    """
    picture = scratch(
        (), side=side, patch=patch, width=width, depth=depth, heads=heads, prefix=1, mean=mean, std=std, seed=seed
    )
    settings = VideoSettings(
        space=picture.settings,
        frames=frames,
        tubelet=tubelet,
        depth=temporal,
        classes=len(labels),
        labels=tuple(labels),
    )
    return _random(settings, seed)


def cheaper_video(model: VideoViT, budget: float, *, seed: int = 0) -> VideoViT:
    """An ordinary network of the same depths with random weights: the `widest` that costs no more than this share.

    Args:
        model: with one expert.
        budget: share of its multiply-accumulates.
        seed: of the weights; torch's own generator stays as it is.

    Raises:
        ValueError: when the model has more than one expert, or no width is so cheap.
    """
    s, patches = model.settings, model.settings.space.grid[0] * model.settings.space.grid[1]

    def sized(form: Nest) -> VideoSettings:
        return replace(s, space=replace(s.space, nest=form))

    def cost(form: Nest) -> int:
        with torch.device("meta"):
            return VideoViT(sized(form)).full_macs(patches)

    return _random(sized(widest(s.nest, budget, cost)), seed)


def with_space(model: VideoViT, space: ViT) -> VideoViT:
    """A copy of a video network with a copy of another spatial encoder, such as its own made elastic.

    Args:
        model: with one expert or more; its temporal blocks and head are kept.
        space: as wide as the model's, for pictures of 3 * tubelet channels, with a class token and no head.

    Raises:
        ValueError: when the encoder has another width, or does not see the model's clips.
    """
    ours, theirs, channels = model.settings.nest.widths[-1], space.settings.nest.widths[-1], 3 * model.settings.tubelet
    if ours != theirs or space.settings.channels != channels:
        raise ValueError(
            f"the spatial encoder must be {ours} wide for {channels} channels, 3 times the tubelet; "
            f"got {theirs} and {space.settings.channels}. Make it from the model's own."
        )
    # Built without memory, so that no generator is advanced and nothing is initialised twice.
    with torch.device("meta"):
        new = VideoViT(replace(model.settings, space=replace(space.settings, channels=3)))
    for name, part in model.named_children():
        setattr(new, name, copy.deepcopy(space if name == "space" else part))
    new.prefix, new.position = copy.deepcopy(model.prefix), copy.deepcopy(model.position)
    return new.train(model.training)


def _random(settings: VideoSettings, seed: int) -> VideoViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoViT(settings)
        place(model.space.embed.position)
        place(model.position)
        return model
