"""Decoding: every odd kind of picture either becomes upright 8-bit RGB or is refused with a reason."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nestor.data import MAX_PIXELS, load, open_picture
from nestor.data.decode import square


def array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be a very large picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_path_bytes_and_picture_decode_to_the_same_pixels(tmp_path: Path, kind: str):
    content = encoded(noise(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    (tmp_path / "file").write_bytes(content)
    for item in (content, tmp_path / "file", str(tmp_path / "file"), noise()):
        picture = open_picture(item)
        assert picture.mode == "RGB"
        assert (array(picture) == array(noise())).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str):
    values = np.array([[0, 257, 128 * 257, 255 * 257], [128, 129, 300, 65535]], dtype=np.uint16)
    picture = open_picture(encoded(Image.fromarray(values), kind))
    assert array(picture)[..., 0].tolist() == [[0, 1, 128, 255], [0, 1, 1, 255]]
    assert (array(picture)[..., 0] == array(picture)[..., 2]).all()


def test_wide_integers_and_floats_outside_a_known_range_are_refused():
    assert array(open_picture(Image.fromarray(np.array([[0, 65535]], dtype=np.int32)))).max() == 255
    assert array(open_picture(Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)))).max() == 255
    assert array(open_picture(Image.fromarray(np.array([[0.0, 200.0]], dtype=np.float32)))).max() == 200
    for values in (np.array([[70000]], np.int32), np.array([[-1]], np.int32), np.array([[np.nan]], np.float32)):
        with pytest.raises(ValueError, match=r"must lie in \[0, (65535|255)\]"):
            open_picture(Image.fromarray(values))


def test_transparency_lies_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    assert array(open_picture(encoded(palette, "PNG", transparency=0))).tolist() == [[[255] * 3, [200, 0, 0]]]
    assert array(open_picture(encoded(palette, "PNG"))).tolist() == [[[10, 20, 30], [200, 0, 0]]]
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 51))
    assert array(open_picture(encoded(half, "PNG"))).tolist() == [[[204, 204, 204]]]
    grey = Image.new("LA", (1, 1), (7, 255))
    assert array(open_picture(encoded(grey, "PNG"))).tolist() == [[[7, 7, 7]]]


def test_cmyk_bilevel_and_single_pixel_become_rgb():
    red = array(open_picture(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)))
    assert red[..., 0].min() > 245
    assert red[..., 1:].max() < 10
    assert array(open_picture(encoded(Image.new("1", (1, 1), 1), "PNG"))).tolist() == [[[255, 255, 255]]]
    assert square(open_picture(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")), 4)[:, 3, 3].tolist() == [1, 2, 3]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (array(open_picture(content)) == [255, 0, 0]).all()


def test_a_turned_photograph_is_set_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = open_picture(encoded(noise(), "PNG", exif=exif))
    assert (array(picture) == np.rot90(array(noise()), -1)).all()


def test_too_many_pixels_are_refused_before_decoding():
    # Decoding would complain about the missing data instead.
    with pytest.raises(ValueError, match="may have 1 to 64,000,000 pixels; this one is 9000 x 8000"):
        open_picture(huge_png(9000, 8000))
    with pytest.raises(ValueError, match="more than 178,956,970 pixels"):
        open_picture(huge_png(30_000, 30_000))
    with pytest.raises(ValueError, match="truncated"):
        open_picture(huge_png(8000, 8000))
    with pytest.raises(ValueError, match="may have 1 to 100 pixels; this one is 40 x 30"):
        open_picture(noise(), max_pixels=100)
    assert MAX_PIXELS == 64_000_000


def test_a_30000_pixel_wide_picture_is_cropped_without_growing():
    strip = np.zeros((3, 30_000, 3), np.uint8)
    strip[:, 14_999:15_001] = 255
    pixels = square(open_picture(Image.fromarray(strip)), 32)
    assert pixels.shape == (3, 32, 32)
    assert pixels[0, 16, 16] > 200
    assert pixels[0, 16, 0] < 60


def test_large_jpeg_is_decoded_small_but_never_below_twice_the_need():
    content = encoded(Image.linear_gradient("L").resize((1600, 800)).convert("RGB"), "JPEG")
    assert open_picture(content).size == (1600, 800)
    small = open_picture(content, at_least=100)
    assert small.size == (400, 200)
    difference = square(small, 100).float() - square(open_picture(content), 100).float()
    assert difference.abs().max() <= 3


def test_square_covers_and_crops_the_centre():
    for size in (10, 16, 46, 60):
        wide, tall = (noise(6, 6).resize(shape, Image.Resampling.BICUBIC) for shape in ((60, 30), (30, 60)))
        for picture, whole in ((wide, (2 * size, size)), (tall, (size, 2 * size))):
            left, top = (whole[0] - size) // 2, (whole[1] - size) // 2
            cover = picture.resize(whole, Image.Resampling.BICUBIC)
            expected = cover.crop((left, top, left + size, top + size))
            # The two ways may round once more or less between the passes for rows and columns.
            difference = square(picture, size).permute(1, 2, 0).numpy() - array(expected).astype(int)
            assert np.abs(difference).max() <= 1
    picture = noise(30, 30)
    assert (square(picture, 30) == torch.from_numpy(array(picture).copy()).permute(2, 0, 1)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_truncated_picture_is_refused(kind: str):
    content = encoded(noise(200, 200), kind)
    with pytest.raises(ValueError, match=r"\w"):
        open_picture(content[: len(content) // 2])


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_is_found_at_the_smallest_scale_just_as_at_full_size(progressive: bool):
    content = encoded(noise(64, 48), "JPEG", progressive=progressive)
    found = []
    for length in range(len(content) - 60, len(content) + 1):
        verdicts = set()
        for at_least in (1, 16, None):
            try:
                open_picture(content[:length], at_least=at_least)
                verdicts.add("whole")
            except ValueError:
                verdicts.add("cut")
        assert len(verdicts) == 1
        found += verdicts
    assert found[0] == "cut"
    assert found[-1] == "whole"


def test_what_is_no_picture_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="zero bytes"):
        open_picture(b"")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="zero bytes"):
        open_picture(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="not a picture"):
        open_picture(b"path,label\n1,2\n")
    with pytest.raises(ValueError, match="not a picture"):
        open_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError, match="1 to 64,000,000 pixels; this one is 0 x 5"):
        open_picture(Image.new("RGB", (0, 5)))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        open_picture(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="ordinary file"):
        open_picture(tmp_path / "pipe.png")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_picture_or_a_value_error(data: st.DataObject):
    content = bytearray(encoded(noise(12, 9), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]))))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    try:
        picture = open_picture(bytes(content), max_pixels=100_000)
    except ValueError:
        return
    assert picture.mode == "RGB"


def test_one_bad_picture_of_each_kind_is_skipped_with_its_reason(tmp_path: Path):
    folder = tmp_path / "cells"
    for name in ("bad", "good"):
        (folder / name).mkdir(parents=True)
        noise().save(folder / name / "fine.png")
    jpeg = encoded(noise(300, 300), "JPEG")
    (folder / "bad" / "cut.jpg").write_bytes(jpeg[:-2000])
    (folder / "bad" / "empty.jpg").touch()
    (folder / "bad" / "huge.png").write_bytes(huge_png(9000, 9000))
    (folder / "bad" / "text.png").write_text("no picture")
    (folder / "bad" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    pictures = load(folder, size=8)
    assert pictures.names == ("bad/fine.png", "good/fine.png")
    assert [line.split(":")[0] for line in pictures.skipped] == [
        f"bad/{name}" for name in ("cut.jpg", "empty.jpg", "huge.png", "lost.png", "text.png")
    ]
    for line, reason in zip(pictures.skipped, ["truncated", "zero bytes", "9000", "no such", "not a"], strict=True):
        assert reason in line
    assert "5 skipped" in repr(pictures)
