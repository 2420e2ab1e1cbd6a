"""Pictures as the page carries them."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from nestor.measure.draw import TINT, palette

if TYPE_CHECKING:
    from torch import Tensor

_QUALITY = 88


def tinted(shown: Tensor, index: Tensor, experts: int) -> np.ndarray:
    """A picture with each patch tinted by the width it got, narrow ones dark and wide ones bright: uint8 (S, S, 3).

    Args:
        shown: uint8 (3, S, S), where the patches divide S.
        index: (rows, columns), the expert of each patch.
        experts: how many there are.
    """
    grey = shown.permute(1, 2, 0).numpy().mean(-1, keepdims=True)
    rows, columns = index.shape
    colours = 255 * np.asarray(palette(experts))[index.numpy()]
    colours = colours.repeat(shown.shape[1] // rows, 0).repeat(shown.shape[2] // columns, 1)
    return ((1 - TINT) * grey + TINT * colours).round().astype(np.uint8)


def swatches(experts: int) -> tuple[str, ...]:
    """Colours of the experts as they look in a tinted picture, over a middle grey: like #3a4b5c."""
    mixed = [tuple(round(255 * ((1 - TINT) / 2 + TINT * part)) for part in colour) for colour in palette(experts)]
    return tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in mixed)


def address(pixels: np.ndarray | Tensor) -> str:
    """A picture, uint8 (S, S, 3) or as a tensor (3, S, S), as an address that holds all of it."""
    values = pixels if isinstance(pixels, np.ndarray) else pixels.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    # Colours of neighbouring patches would run into each other at half the resolution.
    Image.fromarray(values).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
