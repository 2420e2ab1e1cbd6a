"""The one way from a file, bytes or a PIL picture to pixels."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

MAX_PIXELS = 64_000_000
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".gif", ".webp", ".avif"),
        *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO")

Item = str | Path | bytes | Image.Image


class Items(Protocol):
    """Numbered pictures, each of which may be read only when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's own warnings: what matters of them is raised as an error here.

    Enter it outside of threads, since Python's warning filters belong to the whole process.
    """
    with warnings.catch_warnings():
        # A damaged EXIF block or a large header would else be printed once for each picture.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL(\.|$)")
        yield


def open_picture(item: Item, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a path, bytes or a PIL picture into an upright 8-bit RGB picture, first frame, transparency on white.

    Args:
        item: path, encoded bytes, or PIL picture.
        at_least: the shorter side that is needed, in pixels; larger JPEG pictures are then decoded at a fraction of
            their size, never below twice this side.
        max_pixels: pictures with more pixels are refused before anything is decoded; Pillow's own bound, 178,956,970,
            stays in force above this one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the picture is damaged, too large, or of a format that is not read.
    """
    with quiet():
        return decode(item, at_least=at_least, max_pixels=max_pixels)


def decode(item: Item, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Do what `open_picture` does, without silencing Pillow's warnings, so that threads may call it within `quiet`."""
    if isinstance(item, Image.Image):
        _check_size(item.size, max_pixels)
        return _guarded(item.copy)
    if isinstance(item, bytes):
        if not item:
            raise ValueError("the picture is empty (zero bytes)")
        file: io.BytesIO | Path = io.BytesIO(item)
    else:
        file = Path(item)
        if not file.exists():
            raise FileNotFoundError(f"no such picture: {file}")
        # A pipe or device named like a picture would be read for ever.
        if not file.is_file():
            raise ValueError("not an ordinary file")
        if file.stat().st_size == 0:
            raise ValueError("the file is empty (zero bytes)")

    def read() -> Image.Image:
        with Image.open(file, formats=_formats()) as picture:
            _check_size(picture.size, max_pixels)
            if at_least is not None:
                picture.draft(None, (2 * at_least, 2 * at_least))  # pyright: ignore[reportArgumentType]
            picture.load()
            return picture.copy()

    return _guarded(read)


def square(picture: Image.Image, size: int) -> Tensor:
    """Scale an RGB picture so that it covers a square, crop the centre: uint8 (3,size,size)."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Cropping within the same call spares enlarging a very wide picture as a whole first.
    box = (left, top, left + side, top + side)
    scaled = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if not 0 < width * height <= max_pixels:
        raise ValueError(f"pictures may have 1 to {max_pixels:,} pixels; this one is {width} x {height}")


def _guarded(read: Callable[[], Image.Image]) -> Image.Image:
    try:
        return _rgb(_upright(read()))
    except Image.UnidentifiedImageError:
        raise ValueError("not a picture in a format that is read here") from None
    except Image.DecompressionBombError:
        raise ValueError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, Pillow's own bound") from None
    except (MemoryError, FileNotFoundError):
        raise
    # Decoders answer damage with every kind of exception, from struct.error to ZeroDivisionError.
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        # The pixels are whole even where the EXIF block is not.
        return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _from_range(np.asarray(picture), 65535, picture.mode)
    if picture.mode == "F":
        values = np.asarray(picture)
        return _from_range(values, 1 if values.max() <= 1 else 255, picture.mode)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def _from_range(values: np.ndarray, top: int, mode: str) -> Image.Image:
    low, high = values.min(), values.max()
    # NaN fails this comparison too.
    if not (low >= 0 and high <= top):
        raise ValueError(f"pixels of mode {mode} must lie in [0, {top}]; got [{low}, {high}]")
    grey = np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
