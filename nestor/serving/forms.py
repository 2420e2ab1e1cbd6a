"""Files in forms (multipart/form-data), read in memory: a server may have no disk to write to."""

from __future__ import annotations

import io

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

# Of a form; a picture has one file and perhaps a few fields beside it.
MOST = 9


def file(body: bytes, kind: str, name: str) -> bytes:
    """The file of this name in a form.

    Args:
        body: the form.
        kind: its content type.
        name: of the part.

    Raises:
        ValueError: the form is broken, has too many parts, or has no such file.
    """
    _, options = parse_options_header(kind)
    if not options.get(b"boundary"):
        raise ValueError("the form is broken: its content type names no boundary.")
    reader = _Reader(name.encode())
    on = {"on_part_begin": reader.begin, "on_part_data": reader.data, "on_part_end": reader.end}
    on |= {"on_header_field": reader.field, "on_header_value": reader.value, "on_header_end": reader.known}
    try:
        parser = MultipartParser(options[b"boundary"], on | {"on_headers_finished": reader.start})  # pyright: ignore[reportArgumentType]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ValueError(f"the form is broken: {error}.") from error
    if reader.found is None:
        raise ValueError(f"the form needs a part called {name}, with a file name.")
    return reader.found


class _Reader:
    """Keeps one file of a form and nothing else."""

    def __init__(self, name: bytes):
        self.found: bytes | None = None
        self._name, self._parts = name, 0
        self._field = self._value = self._disposition = b""
        self._into: io.BytesIO | None = None

    def begin(self) -> None:
        self._parts, self._disposition = self._parts + 1, b""
        if self._parts > MOST:
            raise ValueError(f"the form is broken: it may have at most {MOST} parts.")

    def field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def known(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def start(self) -> None:
        _, options = parse_options_header(self._disposition)
        wanted = self.found is None and options.get(b"name") == self._name and b"filename" in options
        self._into = io.BytesIO() if wanted else None

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._into is not None:
            self._into.write(memoryview(data)[start:end])

    def end(self) -> None:
        if self._into is not None:
            self.found, self._into = self._into.getvalue(), None
