"""Random changes of training pictures that depend on nothing but seed, epoch and picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Which random changes training pictures undergo.

    Attributes:
        flip: mirror left and right in half of the cases.
        rotate90: turn by 0, 90, 180 or 270 degrees, where a picture has no natural top.
        jitter: brightness and contrast are each multiplied by a number within 1 - jitter and 1 + jitter; in [0, 1).

    Raises:
        ValueError: jitter lies outside [0, 1).
    """

    flip: bool = True
    rotate90: bool = False
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must lie in [0, 1); got {self.jitter}. 0.1 to 0.4 is usual.")

    def __call__(self, pixels: Tensor, *, seed: int, epoch: int, row: int) -> Tensor:
        """Turn uint8 pixels (3,H,H) into a changed image in [0, 1]; equal numbers give equal results bit for bit."""
        # All numbers are drawn whatever the settings, so that one setting never changes what another does.
        draws = np.random.default_rng((seed, epoch, row)).random(4).tolist()
        image = pixels.float() / 255
        if self.flip and draws[0] < 0.5:
            image = image.flip(2)
        if self.rotate90:
            image = torch.rot90(image, int(draws[1] * 4), (1, 2))
        if self.jitter:
            brightness, contrast = (1 + self.jitter * (2 * draw - 1) for draw in draws[2:])
            # Summed as integers, since a sum of floats would depend on the number of threads.
            middle = brightness * pixels.sum(dtype=torch.int64).item() / pixels.numel() / 255
            image = ((image * brightness - middle) * contrast + middle).clamp(0, 1)
        return image.contiguous()
