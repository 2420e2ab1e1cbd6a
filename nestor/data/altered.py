"""The same pictures otherwise: worn, as none was that a network has learned from, or drawn in another style."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from nestor.data.derived import edges
from nestor.data.load import load_splits

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from nestor.data.pictures import Pictures

WORN = ("noise", "blur", "fading", "gaps")
STYLES = ("plain", "negative", "outlines", "blocks")


def altered(pictures: Pictures, *kinds: str, seed: int = 0) -> Pictures:
    """Pictures with other pixels, kept in memory; of several kinds the pictures take turns.

    Args:
        pictures: with whatever pixels.
        kinds: of WORN or STYLES.
        seed: of noise and gaps.

    Raises:
        ValueError: there is no picture, or no such kind.
    """
    if not kinds or set(kinds) - _KINDS.keys() or not len(pictures):
        raise ValueError(f"pictures can be altered by {', '.join(_KINDS)}; got {kinds} for {len(pictures)} pictures.")
    cache = pictures.cached().cache
    assert cache is not None
    cache, chance = cache.clone(), torch.Generator().manual_seed(seed)
    for turn, kind in enumerate(kinds):
        if len(cache[turn :: len(kinds)]):
            made = _KINDS[kind](cache[turn :: len(kinds)].float() / 255, chance)
            cache[turn :: len(kinds)] = (made.clamp(0, 1) * 255).round().to(torch.uint8)
    return replace(pictures, cache=cache)


def left_out_styles(size: int, learn: int, judge: int) -> dict[str, tuple[Pictures, Pictures]]:
    """Fashion-MNIST to learn from in all styles but one and to be judged by in that one, by its name.

    Args:
        size: of a picture in pixels.
        learn, judge: how many pictures, each in one style.

    Raises:
        ImportError: the files are missing, and so is datasets.
    """
    first, second = load_splits("fashion-mnist", size=size)
    first, second = first.limit(learn).cached(), second.limit(judge).cached()
    others = {style: [each for each in STYLES if each != style] for style in STYLES}
    return {style: (altered(first, *rest), altered(second, style)) for style, rest in others.items()}


def _blur(images: Tensor, chance: torch.Generator) -> Tensor:
    side = images.shape[-1] // 10 // 2 * 2 + 1
    for _ in range(2):
        images = F.avg_pool2d(images, side, 1, side // 2, count_include_pad=False)
    return images


def _gaps(images: Tensor, chance: torch.Generator) -> Tensor:
    N, _, H, W = images.shape
    down, across = (torch.randint(side // 2 + 1, (N, 1), generator=chance) for side in (H, W))
    rows, columns = torch.arange(H) - down, torch.arange(W) - across
    inside = ((rows >= 0) & (rows < H // 2)).unsqueeze(2) & ((columns >= 0) & (columns < W // 2)).unsqueeze(1)
    return images.masked_fill(inside.unsqueeze(1), 0)


def _blocks(images: Tensor, chance: torch.Generator) -> Tensor:
    side = max(1, images.shape[-1] // 14)
    small = F.avg_pool2d(images, side, ceil_mode=True)
    return F.interpolate(small, size=images.shape[-2:], mode="nearest")


_KINDS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise": lambda images, chance: images + 0.3 * torch.randn(images.shape, generator=chance),
    "blur": _blur,
    "fading": lambda images, chance: 0.5 + 0.25 * (images - images.mean((1, 2, 3), keepdim=True)),
    "gaps": _gaps,
    "plain": lambda images, chance: images,
    "negative": lambda images, chance: 1 - images,
    "outlines": lambda images, chance: 2 * edges(images.flatten(0, 1)).view_as(images),
    "blocks": _blocks,
}
