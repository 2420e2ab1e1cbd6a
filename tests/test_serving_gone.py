"""Who goes: clients that leave before they are answered, and the server when it is told to stop."""

import socket
from collections.abc import Iterator

import pytest
from asking import network, png
from running import running, until
from test_serving_engine import PATIENT, WAIT, Gated

from nestor.serving.engine import Engine
from nestor.serving.guard import Limits
from nestor.serving.http import Front
from nestor.serving.metrics import Metrics
from nestor.serving.server import Server

LEFT = 'nestor_requests_total{route="/predict",status="499"}'


@pytest.fixture
def holding() -> Iterator[tuple[Server, Gated]]:
    """A server whose network has the first request, and holds it."""
    served = network()
    server = Server(lambda: served, PATIENT, batch=4, port=0)
    with running(server):
        served.shut()
        yield server, served
        served.gate.set()


def asked(server: Server) -> socket.socket:
    """A connection on which a picture was sent."""
    connection = socket.create_connection(server.socket.getsockname(), timeout=WAIT)
    body = png()
    connection.sendall(b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    return connection


def counted(server: Server, name: str) -> float:
    lines = server.metrics.text(server.engine).decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_whoever_leaves_is_not_run_and_is_noted(holding: tuple[Server, Gated], caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "nestor.serving")
    server, served = holding
    first = asked(server)
    assert served.entered.wait(WAIT)
    leaving, staying = asked(server), asked(server)
    until(lambda: server.engine.rows == 2)
    leaving.close()
    until(lambda: server.engine.rows == 1)
    until(lambda: counted(server, LEFT) == 1)
    assert counted(server, 'nestor_refused_total{reason="left"}') == 1
    served.gate.set()
    for each in (first, staying):
        with each:
            assert each.recv(100).startswith(b"HTTP/1.1 200 ")
    assert counted(server, "nestor_pictures_total") == 2
    facts = [getattr(record, "facts", {}) for record in caplog.records]
    assert [each["error"] for each in facts if each.get("status") == 499] == ["left"]


def test_whoever_leaves_while_it_is_run_is_noted_too(holding: tuple[Server, Gated]):
    server, served = holding
    connection = asked(server)
    assert served.entered.wait(WAIT)
    connection.close()
    until(lambda: counted(server, LEFT) == 1)
    served.gate.set()
    with asked(server) as other:
        assert other.recv(100).startswith(b"HTTP/1.1 200 ")


# Being told to stop.


def test_the_parts_of_stopping_share_one_limit():
    now = 100.0
    engine = Engine(network(), PATIENT, batch=4, clock=lambda: now)
    front = Front(engine, name="elastic", limits=Limits(), metrics=Metrics())
    assert not front.leaving
    assert front.remaining(30.0) == 30.0
    front.leave()
    now = 120.0
    front.leave()
    assert front.leaving
    assert front.remaining(30.0) == 10.0
    now = 140.0
    assert front.remaining(30.0) == 0.0


def test_a_network_that_hangs_keeps_no_server_from_stopping(monkeypatch: pytest.MonkeyPatch):
    served, given = network(), list[float | None]()
    drain = Engine.drain

    def noted(engine: Engine, seconds: float | None = None) -> bool:
        given.append(seconds)
        return drain(engine, seconds)

    monkeypatch.setattr(Engine, "drain", noted)
    server = Server(lambda: served, PATIENT, batch=4, port=0, patience=1)
    with running(server):
        served.shut()
        connection = asked(server)
        assert served.entered.wait(WAIT)
    connection.close()
    # The requests had all of it.
    assert given == [0.0]
    served.gate.set()
    assert server.engine.drain(WAIT)
