"""What is looked at before a stranger's picture is decoded: its format, and how often its pixels would be gone over."""

from __future__ import annotations

import re

# Of a progressive JPEG; encoders make about ten. Each goes over the whole picture, however few its bytes.
SCANS = 32
# Segments of a JPEG; a large colour profile has some hundred.
SEGMENTS = 2000
_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
# Neither a stuffed byte nor a restart, which stand within a scan by the thousand.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SCAN, _END = 0xDA, 0xD9


def check(picture: bytes) -> bytes:
    """The picture itself, if it may be decoded.

    Raises:
        ValueError: it is of another format than JPEG, PNG, WebP, GIF and BMP, or takes too long to decode.
    """
    if not picture:
        raise ValueError("the picture is empty (zero bytes).")
    if not picture.startswith(_HEADS) and not (picture.startswith(b"RIFF") and picture[8:12] == b"WEBP"):
        raise ValueError("a picture must be a JPEG, PNG, WebP, GIF or BMP; this is none of them. Convert it to one.")
    if picture.startswith(b"\xff\xd8"):
        _check_scans(picture)
    # Runs of equal pixels are decoded by a loop in Python; a header of 12 bytes has none.
    if picture.startswith(b"BM") and int.from_bytes(picture[14:18], "little") > 12:
        compression = int.from_bytes(picture[30:34], "little")
        if compression in (1, 2):
            raise ValueError("a BMP must not be compressed; this one is. Send it as PNG.")
    return picture


def _check_scans(picture: bytes) -> None:
    scans, place = 0, 2
    for _ in range(SEGMENTS):
        found = _MARKER.search(picture, place)
        if found is None:
            return
        marker, place = picture[found.end() - 1], found.end()
        if marker == _END:
            return
        scans += marker == _SCAN
        if scans > SCANS:
            raise ValueError(f"a JPEG may have at most {SCANS} scans; this one has more. Save it anew.")
        place += max(2, int.from_bytes(picture[place : place + 2], "big"))
    raise ValueError(f"a JPEG may have at most {SEGMENTS:,} segments; this one has more. Save it anew.")
