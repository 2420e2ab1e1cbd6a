"""The server on a real socket: a client that nobody here wrote, signals, and the command."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import LABELS, network, png
from nets import small
from running import running, until
from test_serving_engine import PATIENT, WAIT, Gated, pictures

from nestor.models.saved import save_model
from nestor.serving.network import ServedViT
from nestor.serving.server import Server

ROOT = Path(__file__).parent.parent


@pytest.fixture
def started() -> Iterator[tuple[Server, threading.Thread]]:
    server = Server(lambda: network(), PATIENT, batch=4, port=0)
    with running(server) as thread:
        yield server, thread


def test_tritonclient(started: tuple[Server, threading.Thread]):
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    server, _ = started
    with triton.InferenceServerClient(server.address.removeprefix("http://"), network_timeout=WAIT) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("elastic")
        assert client.is_model_ready("elastic", "1")
        assert client.get_server_metadata()["name"] == "nestor"
        meta = client.get_model_metadata("elastic")
        [taken] = meta["inputs"]
        images = pictures(2)
        offline = server.engine.served.run(images, 0.5)
        assert offline.experts is not None
        for as_bytes in (True, False):
            given = triton.InferInput(taken["name"], [2, *taken["shape"][1:]], taken["datatype"])
            given.set_data_from_numpy(images.numpy(), binary_data=as_bytes)
            wanted = [triton.InferRequestedOutput(each["name"], binary_data=as_bytes) for each in meta["outputs"]]
            for outputs in (wanted, None):
                found = client.infer(
                    "elastic", [given], outputs=outputs, parameters={"budget": 0.5}, priority=1, timeout=20_000_000
                )
                np.testing.assert_array_equal(found.as_numpy("logits"), offline.logits.numpy())
                np.testing.assert_array_equal(found.as_numpy("experts"), offline.experts.numpy())
                assert found.get_response()["parameters"]["budget"] == 0.5
        with pytest.raises(InferenceServerException, match="there is no such model"):
            client.infer("other", [given])
        with pytest.raises(InferenceServerException, match="compressed bodies are not taken"):
            client.infer("elastic", [given], request_compression_algorithm="gzip")


def test_being_told_to_stop_answers_who_is_in(started: tuple[Server, threading.Thread]):
    import httpx2

    server, thread = started
    served = server.engine.served
    assert isinstance(served, Gated)
    found: list[Any] = []
    with httpx2.Client(base_url=server.address, timeout=WAIT) as client:
        assert client.get("/v2/health/ready").status_code == 200
        served.shut()

        def ask() -> None:
            found.append(httpx2.post(f"{server.address}/predict", content=png(), timeout=WAIT))

        asking = [threading.Thread(target=ask) for _ in range(3)]
        asking[0].start()
        assert served.entered.wait(WAIT)
        for each in asking[1:]:
            each.start()
        until(lambda: server.engine.rows == 2)
        server.handle_exit(signal.SIGTERM, None)
    served.gate.set()
    for each in [*asking, thread]:
        each.join(WAIT)
    assert [each.status_code for each in found] == [200] * 3


def test_a_flood_of_headers_does_not_reach_anything(started: tuple[Server, threading.Thread]):
    import socket

    server, _ = started
    with socket.create_connection(server.socket.getsockname(), timeout=WAIT) as flood:
        flood.sendall(b"GET /v2 HTTP/1.1\r\n" + b"x-more: and more\r\n" * 2000)
        assert flood.recv(100).startswith(b"HTTP/1.1 400 ")


def test_loading_anew_and_failing_to(started: tuple[Server, threading.Thread], caplog):
    server, _ = started
    server.reload().join(WAIT)
    assert server.engine.version == 2

    def fail() -> ServedViT:
        raise FileNotFoundError("there is no folder")

    server.load = fail
    server.reload().join(WAIT)
    assert server.engine.version == 2
    assert "the old one serves on" in caplog.text
    assert b"nestor_reload_failures_total 1.0" in server.metrics.text(server.engine)


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path):
    import httpx2

    save_model(small(labels=LABELS), tmp_path / "elastic")
    keys = tmp_path / "keys"
    keys.write_text("# who may ask\nann s3cret\n")
    command = [sys.executable, "-m", "nestor.cli", "serve", str(tmp_path / "elastic"), "--p95", "20s", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--keys", str(keys), "--budgets", ".5,1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "serves elastic at budgets 0.5, 1" in line
        with httpx2.Client(base_url=line.split()[0], timeout=WAIT, headers={"x-api-key": "s3cret"}) as client:
            until(lambda: client.get("/v2/health/ready").status_code == 200)
            assert client.post("/predict", content=png()).json()["labels"][0]["label"] in LABELS
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=WAIT)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert "s3cret" not in log
    assert any(json.loads(line).get("route") == "/predict" for line in log.splitlines() if line.startswith("{"))
