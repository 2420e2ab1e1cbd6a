"""What stands before and behind the queue is bounded: requests, their bytes, decoding, and answers nobody reads."""

import asyncio
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import uvicorn
from asking import binary, infer, network, png, refused, until_ready
from fastapi.testclient import TestClient
from test_serving_engine import PATIENT, WAIT, pictures
from uvicorn.server import ServerState

from nestor.serving import forms, tensors
from nestor.serving.aside import Aside
from nestor.serving.engine import Engine
from nestor.serving.guard import Guard, Keys, Limits
from nestor.serving.http import application
from nestor.serving.metrics import Metrics
from nestor.serving.order import RefusedError
from nestor.serving.pictures import check
from nestor.serving.punctual import punctual
from nestor.serving.room import Room

OVERLOADED = b'nestor_refused_total{reason="overloaded"} '


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(network(), PATIENT, batch=4)
    yield engine
    engine.drain(WAIT)


def counted(metrics: Metrics, engine: Engine) -> int:
    lines = metrics.text(engine).splitlines()
    return sum(int(float(line.rsplit(b" ", 1)[1])) for line in lines if line.startswith(OVERLOADED))


# Requests under way.


def test_one_request_too_many_is_told_so_in_full(engine: Engine, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "nestor.serving")
    metrics = Metrics()
    app = application(engine, limits=Limits(requests=2), metrics=metrics)
    with TestClient(app) as client:
        until_ready(client)
        room = guard(app).room
        inside = [room.enter() for _ in range(2)]
        full = client.get("/v2", headers={"x-request-id": "turned-away"})
        assert refused(full, 429) == "too much traffic: 2 requests are under way. Ask again in a moment."
        assert full.headers["retry-after"] == "1"
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        assert counted(metrics, engine) == 1
        lines = [getattr(each, "facts", {}) for each in caplog.records]
        assert [each["status"] for each in lines if each.get("request_id") == "turned-away"] == [429]
        inside.pop().leave()
        assert client.get("/v2").status_code == 200
        assert room.inside == 1


def guard(app: Any) -> Guard:
    """The guard of an application, which is built when it is first asked."""
    found = app.middleware_stack
    while not isinstance(found, Guard):
        found = found.app
    return found


# Bytes under way.


def test_bodies_under_way_share_their_bytes(engine: Engine):
    app = application(engine, limits=Limits(size=10_000, held=12_000))
    with TestClient(app) as client:
        until_ready(client)
        room = guard(app).room
        other = room.enter()
        other.take(12_000 - len(png()))
        assert client.post("/predict", content=png()).status_code == 200
        assert room.held == 12_000 - len(png())
        other.take(1)
        # A length that is declared is believed before anything is read; else bytes are counted as they come.
        for body in (png(), iter([png()[:500], png()[500:]])):
            answer = client.post("/predict", content=body)
            assert "the bodies under way fill the 12,000 bytes" in refused(answer, 429)
            assert answer.headers["retry-after"] == "1"
        other.leave()
        assert (room.inside, room.held) == (0, 0)
    # However little the room is, one body finds place in it.
    assert guard_of(Limits(size=1000, held=10)).room.size == 1000


def guard_of(limits: Limits) -> Guard:
    return Guard(lambda *_: None, keys=Keys({}), metrics=Metrics(), limits=limits)  # pyright: ignore[reportArgumentType]


def test_a_room_is_left_as_it_was_found():
    gone: list[str] = []
    room = Room(requests=1, size=10, refused=gone.append)
    place = room.enter()
    place.take(10)
    for ask in (room.enter, lambda: place.take(1), lambda: place.expect(1)):
        with pytest.raises(RefusedError, match="too much traffic"):
            ask()
    place.leave()
    assert (room.inside, room.held, gone) == (0, 0, ["overloaded"] * 3)


# Before reading and decoding.


def test_who_is_turned_away_is_so_before_the_body_comes(engine: Engine):
    with TestClient(application(engine)) as client:
        until_ready(client)
        engine.close()
        # Neither is a picture or a request; nobody looks.
        for path in ("/predict", "/v2/models/elastic/infer"):
            assert "the server is stopping" in refused(client.post(path, content=b"nonsense"), 503)


def test_who_is_turned_away_is_so_before_numbers_are_read(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise RefusedError("overloaded", "no room", after=1.0)

    read: list[Any] = []
    monkeypatch.setattr(tensors, "_tensor", lambda *given: read.append(given))
    with pytest.raises(RefusedError):
        tensors.read(json.dumps(infer(pictures())).encode(), None, engine.served, refuse)  # pyright: ignore[reportArgumentType]
    assert not read


def test_who_would_wait_too_long_to_be_read_is_told_so_at_once():
    now, gone = 0.0, []
    aside = Aside(1, clock=lambda: now, refused=gone.append)
    begun, go = threading.Event(), threading.Event()

    def slow() -> str:
        nonlocal now
        begun.set()
        assert go.wait(WAIT)
        now += 8.0
        return "done"

    async def ask() -> None:
        found: list[Any] = []

        async def one(**more: float) -> None:
            try:
                found.append(await aside.do(slow, arrived=now, **({"promise": 5.0, "patience": 10.0} | more)))
            except RefusedError as error:
                found.append((error.kind, error.after))

        async with anyio.create_task_group() as group:
            # Nothing is known yet of how long it takes, so that a second one may wait, and a third.
            group.start_soon(one)
            while not begun.is_set():
                await anyio.sleep(0.001)
            group.start_soon(lambda: one(patience=8.0))
            group.start_soon(one)
            while aside._limiter.statistics().tasks_waiting < 2:
                await anyio.sleep(0.001)
            aside._mean = 3.0
            assert aside.wait == 6.0
            await one()
            assert found == [("overloaded", 6.0)]
            go.set()
        # One had waited for all of its 8 seconds, the other for 8 of its 10.
        assert found == [("overloaded", 6.0), "done", ("expired", 1.0), "done"]
        assert aside.wait == 0

    anyio.run(ask)
    assert gone == ["overloaded", "expired"]
    assert 0 < aside._mean < 8


def test_a_picture_that_is_being_read_is_ahead_of_whoever_comes(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    coming: list[int] = []

    def noted(body: bytes) -> bytes:
        coming.append(len(engine._running().coming))
        return check(body)

    monkeypatch.setattr("nestor.serving.pictures.check", noted)
    with TestClient(application(engine)) as client:
        until_ready(client)
        assert client.post("/predict", content=png()).status_code == 200
        refused(client.post("/predict", content=b"nonsense"), 400)
        assert (coming, engine._running().coming) == ([1, 1], {})


def test_the_wait_for_a_thread_counts_against_the_promise(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    with TestClient(application(engine)) as client:
        until_ready(client)
        monkeypatch.setattr(Aside, "wait", property(lambda self: PATIENT.target + 1))
        late = client.post("/predict", content=png())
        assert "requests wait to be read" in refused(late, 429)
        assert int(late.headers["retry-after"]) > PATIENT.target
        # A later deadline bears it.
        assert client.post("/predict", content=png(), params={"deadline_ms": 600_000}).status_code == 200


# JSON and forms.


def test_much_json_is_told_of_the_binary_extension(engine: Engine):
    images = pictures()
    text, sent = json.dumps(infer(images)).encode(), binary(images)
    limits = Limits(json=len(text) - 1)
    with TestClient(application(engine, limits=limits)) as client:
        until_ready(client)
        told = refused(client.post("/v2/models/elastic/infer", content=text), 413)
        assert f"JSON may have at most {len(text) - 1:,} bytes. Send the numbers as bytes" in told
        assert "Inference-Header-Content-Length" in told
        headers = {"Inference-Header-Content-Length": str(len(text))}
        assert refused(client.post("/v2/models/elastic/infer", content=text, headers=headers), 413) == told
        assert client.post("/v2/models/elastic/infer", **sent).status_code == 200


def test_a_large_form_needs_no_disk_and_no_loop(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def unwritable(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    threads, read = [], forms.file

    def file(*given: Any) -> bytes:
        threads.append(threading.current_thread().name)
        return read(*given)

    monkeypatch.setattr(tempfile, "_mkstemp_inner", unwritable)
    monkeypatch.setattr("nestor.serving.forms.file", file)
    with TestClient(application(engine)) as client:
        until_ready(client)
        large = png((1000, 800))
        assert len(large) > 2_000_000
        answer = client.post("/predict", files={"notes": ("a.txt", b"a"), "picture": ("a.png", large)})
        assert answer.status_code == 200, answer.text
    assert threads == ["AnyIO worker thread"]


def test_the_file_of_a_form_comes_out_as_it_went_in():
    data = b"\r\n--x\r\n--xy--\r\r\n" * 10
    head = b'--b\r\ncontent-disposition: form-data; name="%s"; filename="%s"\r\n\r\n'
    body = head % (b"a", b"b") + b"other\r\n" + head % (b"picture", b"") + data + b"\r\n--b--\r\n"
    assert forms.file(body, 'multipart/form-data; boundary="b"', "picture") == data
    with pytest.raises(ValueError, match="needs a part called picture"):
        forms.file(body[:-20], "multipart/form-data; boundary=b", "picture")
    with pytest.raises(ValueError, match="at most 9 parts"):
        forms.file((head % (b"a", b"") + b"\r\n") * 10, "multipart/form-data; boundary=b", "picture")


# Clients that do not read.


class Timer:
    """What is called when its time has come, unless it was cancelled."""

    def __init__(self, due: float, call: Callable[[], Any]):
        self.due, self.call, self.cancelled = due, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Task:
    """A task that never runs."""

    def add_done_callback(self, call: Any) -> None: ...


class Loop:
    """An event loop whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now, self.timers = 0.0, list[Timer]()

    def call_later(self, seconds: float, call: Callable[[], Any]) -> Timer:
        self.timers.append(Timer(self.now + seconds, call))
        return self.timers[-1]

    def create_task(self, work: Any, **_: Any) -> Task:
        # Answers are given by hand here.
        work.close()
        return Task()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for timer in sorted(self.timers, key=lambda timer: timer.due):
            if not timer.cancelled and timer.due <= self.now:
                timer.cancel()
                timer.call()


class Unread:
    """A transport to somebody who reads nothing."""

    def __init__(self) -> None:
        self.unread, self.closing, self.aborted = 0, False, False

    def write(self, data: bytes) -> None:
        self.unread += len(data)

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.fixture
def talk() -> tuple[Any, Unread, Loop]:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_keep_alive=5)
    config.load()
    loop, transport = Loop(), Unread()
    protocol = punctual(10.0)(config, ServerState(), {}, loop)  # pyright: ignore[reportArgumentType]
    protocol.connection_made(transport)  # pyright: ignore[reportArgumentType]
    return protocol, transport, loop


ASK = b"GET / HTTP/1.1\r\nhost: here\r\n%s\r\n"


def answer(protocol: Any) -> None:
    async def send() -> None:
        await protocol.cycle.send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]}
        )
        await protocol.cycle.send({"type": "http.response.body", "body": b"a"})

    asyncio.run(send())


@pytest.mark.parametrize("more", [b"", b"connection: close\r\n"])
def test_an_answer_that_nobody_reads_is_thrown_away(talk: tuple[Any, Unread, Loop], more: bytes):
    protocol, transport, loop = talk
    protocol.data_received(ASK % more)
    loop.wait(60)
    assert not transport.closing
    answer(protocol)
    assert transport.unread
    # Idle for 10 s, it is closed; 10 s are left to read what was said.
    loop.wait(10)
    assert transport.closing
    loop.wait(9.9)
    assert not transport.aborted
    loop.wait(0.1)
    assert transport.aborted


def test_an_answer_that_was_read_needs_no_force(talk: tuple[Any, Unread, Loop]):
    protocol, transport, loop = talk
    protocol.data_received(ASK % b"")
    answer(protocol)
    transport.unread = 0
    loop.wait(10)
    assert transport.closing
    protocol.connection_lost(None)
    loop.wait(60)
    assert not transport.aborted
    assert all(timer.cancelled for timer in loop.timers)


def test_an_answer_that_waits_to_be_read_is_given_up(talk: tuple[Any, Unread, Loop]):
    protocol, transport, loop = talk
    protocol.data_received(ASK % b"")
    protocol.pause_writing()
    loop.wait(9.9)
    protocol.resume_writing()
    loop.wait(60)
    assert not transport.closing
    protocol.pause_writing()
    loop.wait(10)
    assert transport.aborted


def test_limits_are_above_nothing():
    for name in ("json", "requests", "held"):
        with pytest.raises(ValueError, match=f"{name} must be above 0"):
            Limits(**{name: 0})
