"""What a server has to bear from outside: slow clients, floods, forgeries and guesses.

Pictures, tensors, forms, names and limits have their tests beside the routes, in `test_serving_http` and
`test_serving_limits`.
"""

import io
import json
import logging
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from asking import infer, network, png, refused, until_ready
from fastapi.testclient import TestClient
from PIL import Image, ImageFile
from running import running
from test_serving_engine import PATIENT, WAIT, pictures

from nestor.serving import guard
from nestor.serving import pictures as pictures_of_strangers
from nestor.serving.engine import Engine
from nestor.serving.guard import Keys, Limits
from nestor.serving.http import application
from nestor.serving.lines import Lines
from nestor.serving.server import Server

SECRETS = {"ann": "s3cret-of-ann", "bob": "t0ken-of-bob"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(network, PATIENT, batch=4, port=0, limits=Limits(seconds=0.2, size=100_000), connections=8)
    with running(server):
        yield server


def talk(server: Server, *said: bytes) -> bytes:
    """Everything that a server answers until it closes the connection."""
    with socket.create_connection(server.socket.getsockname(), timeout=WAIT) as connection:
        for each in said:
            connection.sendall(each)
        found = b""
        while got := connection.recv(65536):
            found += got
    return found


# Clients that take their time. Nothing here looks at the clock: a server that waited for ever would not close.


@pytest.mark.parametrize("said", [b"", b"GET /v2 HTT", b"GET /v2 HTTP/1.1\r\nhost: here\r\nx-slow: 1"])
def test_whoever_does_not_finish_asking_is_let_go(server: Server, said: bytes):
    assert talk(server, said) == b""


def test_a_body_that_does_not_come_is_not_waited_for(server: Server):
    found = talk(server, b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\nonly this")
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in found
    assert b"the body took longer than 0.2 s" in found


def test_a_body_behind_an_answer_holds_no_place(server: Server):
    found = talk(server, b"GET /v2/health/live HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\nonly this")
    assert found.startswith(b"HTTP/1.1 200 ")


def test_a_kept_connection_is_let_go_in_the_middle_of_its_second_request(server: Server):
    first = b"GET /v2/health/live HTTP/1.1\r\nhost: here\r\n\r\n"
    found = talk(server, first + b"GET /v2 HTT")
    assert found.count(b"HTTP/1.1 200 ") == 1
    assert talk(server, first + first).count(b"HTTP/1.1 200 ") == 2


def test_slow_clients_do_not_keep_others_out(server: Server):
    slow = [socket.create_connection(server.socket.getsockname(), timeout=WAIT) for _ in range(20)]
    try:
        for each in slow:
            each.sendall(b"GET /")
        for each in slow:
            while each.recv(1000):
                pass
        assert talk(server, b"GET /v2 HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    finally:
        for each in slow:
            each.close()


# Requests that are not what they seem.


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2 HTTP/1.1\r\n" + b"x-more: and more\r\n" * 2000,
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n",
        b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-length: -1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost: here\r\nbad header\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["many headers", "long path", "two lengths", "negative length", "no colon", "no host", "TLS"],
)
def test_what_is_no_request_does_not_reach_anything(server: Server, head: bytes):
    before = server.metrics.text(server.engine)
    assert talk(server, head).startswith(b"HTTP/1.1 400 ")
    assert server.metrics.text(server.engine) == before


def test_more_parts_than_a_form_may_have(server: Server):
    parts = b"".join(b'--x\r\ncontent-disposition: form-data; name="a%d"\r\n\r\n1\r\n' % i for i in range(20))
    body = parts + b"--x--\r\n"
    head = b"POST /predict HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)
    found = talk(server, head + b"content-type: multipart/form-data; boundary=x\r\n\r\n" + body)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert b"the form is broken" in found


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    engine = Engine(network(), PATIENT, batch=4)
    with TestClient(application(engine, limits=Limits(pixels=250_000))) as client:
        until_ready(client)
        yield client


def test_numbers_of_many_digits(client: TestClient):
    asked = json.dumps(infer(pictures())).replace('"shape": [1,', f'"shape": [{"9" * 6000},')
    assert "the request is not JSON" in refused(client.post("/v2/models/elastic/infer", content=asked), 400)


def bombs() -> dict[str, bytes]:
    """Pictures whose few bytes become many pixels."""
    found = {}
    for kind in ("PNG", "GIF", "TIFF", "WEBP"):
        file = io.BytesIO()
        Image.new("L", (4000, 4000)).save(file, kind, **({"compression": "tiff_deflate"} if kind == "TIFF" else {}))
        found[kind] = file.getvalue()
    text = zlib.compress(bytes(50_000_000), 9)
    small = png()
    body = b"text\0\0" + text
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    # Behind the header, which takes 33 bytes.
    found["text in PNG"] = small[:33] + chunk + small[33:]
    return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kinds of the pictures that were decoded; whichever way Pillow goes, it begins with `load`."""
    found = []

    def watched(load: Any) -> Any:
        def watch(self: Any) -> Any:
            found.append(self.format)
            return load(self)

        return watch

    Image.init()
    kinds = {plugin for plugin, _ in Image.OPEN.values() if isinstance(plugin, type)} | {ImageFile.ImageFile}
    for kind in kinds:
        if "load" in vars(kind):
            monkeypatch.setattr(kind, "load", watched(vars(kind)["load"]))
    return found


@pytest.mark.parametrize(("kind", "content"), bombs().items(), ids=bombs().keys())
def test_pictures_that_swell(client: TestClient, kind: str, content: bytes, decoded: list[str]):
    assert len(content) < 250_000
    refused(client.post("/predict", content=content), 400)
    assert not decoded


def saved(kind: str, size: tuple[int, int] = (20, 16), **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "teal").save(file, kind, **more)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "more"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {})],
)
def test_pictures_that_are_taken(client: TestClient, kind: str, more: dict, decoded: list[str]):
    assert client.post("/predict", content=saved(kind, **more)).status_code == 200
    assert kind in decoded


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "JPEG2000", "DIB"])
def test_pictures_of_other_kinds_are_not_even_opened(client: TestClient, kind: str, decoded: list[str]):
    message = refused(client.post("/predict", content=saved(kind)), 400)
    assert "must be a JPEG, PNG, WebP, GIF or BMP" in message
    assert not decoded


def scans(picture: bytes, times: int) -> bytes:
    """A progressive JPEG with its last scan so many times."""
    last = picture.rindex(b"\xff\xda")
    return picture[:last] + picture[last:-2] * times + picture[-2:]


def test_a_jpeg_of_many_scans_is_not_decoded(client: TestClient, decoded: list[str]):
    usual = saved("JPEG", progressive=True)
    many = pictures_of_strangers.SCANS - usual.count(b"\xff\xda") + 1
    assert client.post("/predict", content=scans(usual, many)).status_code == 200
    decoded.clear()
    message = refused(client.post("/predict", content=scans(usual, many + 1)), 400)
    assert "a JPEG may have at most 32 scans" in message
    flood = usual[:2] + b"\xff\xfe\0\2" * pictures_of_strangers.SEGMENTS + usual[2:]
    assert "at most 2,000 segments" in refused(client.post("/predict", content=flood), 400)
    assert not decoded


def test_scans_are_told_from_what_only_looks_like_one():
    head, scan = b"\xff\xd8", b"\xff\xda\0\4ab"
    hidden = head + b"\xff\xe1" + (2 + 4 * 100).to_bytes(2, "big") + b"\xff\xda\0\2" * 100 + b"\xff\xd9"
    pixels = head + scan + b"\xff\0\xff\xd0" * 100_000 + b"\xff\xd9" + scan * 100
    for fine in (hidden, pixels, head, head + b"\xff\xda"):
        assert pictures_of_strangers.check(fine + b"\xff") == fine + b"\xff"
    with pytest.raises(ValueError, match="at most 32 scans"):
        pictures_of_strangers.check(head + (scan + b"\xff\xff") * 33)


def test_a_bmp_of_runs_is_not_decoded(client: TestClient, decoded: list[str]):
    runs = bytearray(saved("BMP"))
    runs[30:34] = (1).to_bytes(4, "little")
    assert "a BMP must not be compressed" in refused(client.post("/predict", content=bytes(runs)), 400)
    assert not decoded


# Keys.


def test_keys_take_equally_long_whoever_asks(monkeypatch: pytest.MonkeyPatch):
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(guard.hmac, "compare_digest", compare)
    keys = Keys(SECRETS)
    for offered, name in ((b"s3cret-of-ann", "ann"), (b"t0ken-of-bob", "bob"), (b"", None), (b"x" * 10_000, None)):
        compared.clear()
        assert keys.name(offered) == name
        # Every secret is compared, found or not, and in the same number of bytes.
        assert compared == [(32, 32)] * len(SECRETS)


def test_secrets_are_written_nowhere(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    served = network()
    engine = Engine(served, PATIENT, batch=4)
    answers = []
    with TestClient(application(engine, keys=Keys(SECRETS))) as client:
        until_ready(client)
        served.error = RuntimeError("broken")
        for headers in (
            {"authorization": f"Bearer {SECRETS['ann']}"},
            {"x-api-key": SECRETS["bob"]},
            {"authorization": f"Basic {SECRETS['ann']}"},
            {"x-api-key": SECRETS["bob"] + " and more"},
        ):
            for path in (f"/predict?key={SECRETS['ann']}", "/metrics", "/v2/models/none", "/openapi.json"):
                for method in ("GET", "POST"):
                    answer = client.request(method, path, headers=headers, content=png() if method == "POST" else None)
                    answers.append(answer.text + str(answer.headers))
    ours = [record for record in caplog.records if record.name.startswith(("nestor", "uvicorn"))]
    written = "\n".join(Lines().format(record) + str(vars(record)) for record in ours)
    assert "RuntimeError: broken" in written
    for secret in SECRETS.values():
        assert secret not in written
        assert secret not in "\n".join(answers)
        assert secret not in str(vars(Keys(SECRETS)))
