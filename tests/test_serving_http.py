"""The server over HTTP: the protocol with a foreign client, pictures, every error, metrics and the log."""

import io
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from nets import small
from PIL import Image
from running import running, until
from test_serving_engine import PATIENT, WAIT, Gated, pictures

from nestor.models.saved import save_model
from nestor.serving.engine import Engine
from nestor.serving.guard import Guard, Keys, Limits, RequestError, read
from nestor.serving.http import application
from nestor.serving.lines import Lines
from nestor.serving.metrics import Metrics
from nestor.serving.network import ServedViT
from nestor.serving.room import Room
from nestor.serving.server import Server

LABELS = ("cat", "dog", "newt")
ROOT = Path(__file__).parent.parent


def network() -> Gated:
    return Gated(small(labels=LABELS))


def png(size: tuple[int, int] = (20, 16), seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def infer(images: torch.Tensor, **more: Any) -> dict[str, Any]:
    given = {"name": "images", "datatype": "FP32", "shape": list(images.shape), "data": images.flatten().tolist()}
    return {"inputs": [given]} | more


def binary(images: torch.Tensor, **more: Any) -> dict[str, Any]:
    raw = images.numpy().astype("<f4").tobytes()
    asked = infer(images, **more)
    del asked["inputs"][0]["data"]
    asked["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps(asked).encode()
    return {"content": head + raw, "headers": {"Inference-Header-Content-Length": str(len(head))}}


@pytest.fixture(scope="module")
def served() -> Gated:
    return network()


@pytest.fixture(scope="module")
def client(served: Gated) -> Iterator[TestClient]:
    metrics = Metrics()
    engine = Engine(served, PATIENT, batch=4, watch=metrics)
    app = application(engine, limits=Limits(size=100_000, pixels=10_000), metrics=metrics)
    with TestClient(app) as client:
        until_ready(client)
        yield client


def until_ready(client: TestClient) -> None:
    until(lambda: client.get("/v2/health/ready").status_code == 200)


def refused(response: Any, status: int) -> str:
    """The message of an error, which is always of one shape."""
    found = response.json()
    assert response.status_code == status, found
    assert found.keys() == {"error", "code", "retryable", "request_id"}
    assert found["request_id"] == response.headers["x-request-id"]
    assert found["retryable"] == (status in (429, 503, 504))
    return found["error"]


# The protocol.


def test_health_and_metadata(client: TestClient, served: Gated):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/models/elastic", "/v2/models/elastic/versions/1"):
        assert client.get(f"{path}/ready").json() == {"ready": True}
        found = client.get(path).json()
        assert found["versions"] == ["1"]
        assert found["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 16, 16]}]
        assert [(each["name"], each["shape"]) for each in found["outputs"]] == [
            ("logits", [-1, 3]),
            ("experts", [-1, 16]),
        ]
        assert found["parameters"] == {"budgets": list(served.budgets), "labels": list(LABELS)}


def test_what_is_inferred_is_what_the_network_says(client: TestClient, served: Gated):
    images = pictures(2)
    asked = infer(images, id="mine", parameters={"budget": 1.0}, outputs=[{"name": "logits"}])
    found = client.post("/v2/models/elastic/infer", json=asked).json()
    assert (found["id"], found["model_name"], found["model_version"]) == ("mine", "elastic", "1")
    facts = found["parameters"]
    assert (facts["budget"], facts["batch"], facts["queue"]) == (1.0, 2, 0)
    assert facts["batch_ms"] > 0
    [logits] = found["outputs"]
    assert (logits["datatype"], logits["shape"]) == ("FP32", [2, 3])
    offline = served.run(images, 1.0)
    assert offline.experts is not None
    assert torch.equal(torch.tensor(logits["data"]).reshape(2, 3), offline.logits)
    everything = client.post("/v2/models/elastic/infer", json=infer(images, parameters={"budget": 0.5})).json()
    assert [each["name"] for each in everything["outputs"]] == ["logits", "experts"]
    assert len(set(everything["outputs"][1]["data"])) > 1


def test_bytes_and_numbers_say_the_same(client: TestClient):
    images = pictures()
    plain = client.post("/v2/models/elastic/infer", json=infer(images, parameters={"budget": 0.5})).json()
    sent = binary(images, parameters={"budget": 0.5, "binary_data_output": True})
    response = client.post("/v2/models/elastic/infer", **sent)
    size = int(response.headers["inference-header-content-length"])
    head = json.loads(response.content[:size])
    assert [each["parameters"]["binary_data_size"] for each in head["outputs"]] == [12, 64]
    assert list(struct.unpack("<3f", response.content[size : size + 12])) == plain["outputs"][0]["data"]
    assert list(struct.unpack("<16i", response.content[size + 12 :])) == plain["outputs"][1]["data"]


def without(**changes: Any) -> dict[str, Any]:
    asked = infer(pictures())
    asked["inputs"][0] |= changes
    return asked


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "the request must be an object"),
        ({}, "inputs must be a list with the one tensor 'images'; got None"),
        ({"inputs": [1]}, "an input must be an object; got 1"),
        (infer(pictures(), id=3), "id must be a text; got 3"),
        (infer(pictures(), outputs=3), "outputs must be a list; got 3"),
        (infer(pictures(), outputs=[{"name": "secrets"}]), "outputs must be among logits, experts; got 'secrets'"),
        (infer(pictures(), outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]), "binary_data must be true"),
        (without(name="pictures"), "the input must be called 'images'; got 'pictures'"),
        (without(datatype="FP64"), "images must be of datatype FP32; got 'FP64'"),
        (without(datatype=["FP32"]), "images must be of datatype FP32"),
        (
            without(shape=[1, 3, 16, 8]),
            r"images must be of shape [-1, 3, 16, 16], at least one item; got [1, 3, 16, 8]",
        ),
        (without(shape=[0, 3, 16, 16]), "at least one item"),
        (without(shape=[-1, 3, 16, 16]), "at least one item"),
        (without(shape=[True, 3, 16, 16]), "at least one item"),
        (without(shape="1"), "at least one item"),
        (without(shape=[2, 3, 16, 16]), "data must hold 1536 numbers, flat or in nested lists; got 768"),
        (without(data="text"), "data must be a list of numbers; got 'text'"),
        (without(data=["1"] * 768), "data must hold 768 numbers, flat or in nested lists; got something else"),
        (without(data=[True] * 768), "got something else"),
        (without(data=[[1.0], [1.0, 2.0]]), "got something else"),
        (without(data=[1e39] * 768), "images must hold finite numbers"),
        (without(data=[10**100] * 768), "got something else"),
        (infer(pictures(5)), "at most 4 pictures; got 5"),
        (infer(pictures(), parameters=[]), "parameters must be an object"),
        (infer(pictures(), parameters={"budget": "full"}), "budget must be a number; got 'full'"),
        (infer(pictures(), parameters={"budget": 0.123}), "the budget must be one of"),
        (infer(pictures(), parameters={"floor": 2}), "0 <= floor <= ceiling <= 1; got 2.0 and 1.0"),
        (infer(pictures(), parameters={"budget": 1, "floor": 1}), "give one or the other"),
        (infer(pictures(), parameters={"priority": 1.5}), "priority must be 1 (first), 2 or 3 (last); got 1.5"),
        (infer(pictures(), parameters={"priority": 7}), "priority must be 1 (first), 2 or 3 (last); got 7"),
        (infer(pictures(), parameters={"deadline_ms": -1}), "a deadline must be above 0"),
        (infer(pictures(), parameters={"timeout": True}), "timeout must be a number; got True"),
    ],
)
def test_wrong_inferences_are_told_what_is_wrong(client: TestClient, asked: Any, message: str):
    assert message in refused(client.post("/v2/models/elastic/infer", content=json.dumps(asked)), 400)


def test_what_is_null_is_not_there(client: TestClient):
    asked = infer(pictures(), id=None, parameters=None, outputs=[{"name": "logits", "parameters": None}])
    asked["inputs"][0]["parameters"] = None
    assert client.post("/v2/models/elastic/infer", json=asked).status_code == 200


@pytest.mark.parametrize(
    ("content", "header", "message"),
    [
        (b"", None, "the request is not JSON"),
        (b"\xff\xfe", None, "the request is not JSON"),
        (b'{"inputs": NaN}', None, "NaN is no number of JSON"),
        (b"[" * 20_000, None, "the request is nested too deeply"),
        (b"{}", "3", "Inference-Header-Content-Length must be a number up to the body's 2 bytes; got '3'"),
        (b"{}", "-1", "Inference-Header-Content-Length must be a number"),
        (b"{}", "9" * 5000, "Inference-Header-Content-Length must be a number"),
        (json.dumps(infer(pictures())).encode() + b"1234", None, "the request is not JSON"),
    ],
)
def test_broken_inferences(client: TestClient, content: bytes, header: str | None, message: str):
    headers = {} if header is None else {"Inference-Header-Content-Length": header}
    assert message in refused(client.post("/v2/models/elastic/infer", content=content, headers=headers), 400)


def test_bytes_of_another_length_and_what_is_not_finite(client: TestClient):
    for spoiled in (torch.full((1, 3, 16, 16), torch.nan), torch.full((1, 3, 16, 16), torch.inf)):
        assert "finite" in refused(client.post("/v2/models/elastic/infer", **binary(spoiled)), 400)
    sent = binary(pictures())
    sent["content"] += b"more"
    assert "binary_data_size must be 3072 bytes" in refused(client.post("/v2/models/elastic/infer", **sent), 400)
    head = json.dumps(infer(pictures())).encode()
    extra = {"content": head + b"more", "headers": {"Inference-Header-Content-Length": str(len(head))}}
    assert "4 bytes follow the JSON" in refused(client.post("/v2/models/elastic/infer", **extra), 400)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/other", 404),
        ("/v2/models/elastic/versions/2", 404),
        ("/v2/models/..%2F..%2Fetc%2Fpasswd", 404),
        ("/v2/models/%2e%2e/ready", 404),
        ("/v2/models/elastic%00", 404),
        ("/nothing", 404),
        ("/predict", 405),
    ],
)
def test_what_is_not_there(client: TestClient, path: str, status: int):
    assert refused(client.get(path), status)


# Pictures.


def test_a_picture_as_body_or_in_a_form(client: TestClient, served: Gated):
    picture = png()
    plain = client.post("/predict", content=picture, params={"budget": 0.5, "routing": True}).json()
    form = client.post("/predict", files={"picture": ("a.png", picture)}, params={"budget": 0.5}).json()
    assert plain["labels"] == form["labels"]
    assert "routing" not in form
    offline = served.run(served.prepare(picture), 0.5)
    assert offline.experts is not None
    chances = offline.logits.softmax(-1)[0]
    assert [each["label"] for each in plain["labels"]] == [LABELS[i] for i in chances.argsort(descending=True)]
    assert [each["probability"] for each in plain["labels"]] == pytest.approx(sorted(chances.tolist(), reverse=True))
    assert plain["routing"] == {"experts": offline.experts.reshape(4, 4).tolist()}
    assert (plain["budget"], plain["batch"], plain["model"]) == (0.5, 1, "elastic")
    assert plain["ms"] >= plain["batch_ms"] > 0
    assert len(client.post("/predict", content=picture, params={"top": 1}).json()["labels"]) == 1


def bomb() -> bytes:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the picture is empty"),
        (b"no picture", "a picture must be a JPEG, PNG, WebP, GIF or BMP"),
        (png()[:200], "truncated"),
        (bomb(), "pixels"),
        (png((120, 100)), "pictures may have 1 to 10,000 pixels; this one is 120 x 100"),
    ],
)
def test_what_is_no_picture(client: TestClient, content: bytes, message: str):
    assert message in refused(client.post("/predict", content=content), 400)


def part(head: str) -> bytes:
    return f"--x\r\n{head}\r\n\r\ntext\r\n--x--\r\n".encode()


@pytest.mark.parametrize(
    ("content", "boundary", "message"),
    [
        (b"", "", "the form is broken"),
        (b"nonsense", "; boundary=x", "the form"),
        (part("no header at all"), "; boundary=x", "the form is broken"),
        (part('Content-Disposition: form-data; name="picture"'), "; boundary=x", "needs a part called picture"),
        (part('Content-Disposition: form-data; name="a"; filename="a"'), "; boundary=x", "needs a part called picture"),
    ],
)
def test_broken_forms(client: TestClient, content: bytes, boundary: str, message: str):
    headers = {"content-type": f"multipart/form-data{boundary}"}
    assert message in refused(client.post("/predict", content=content, headers=headers), 400)


@pytest.mark.parametrize(
    "asked", [{"budget": 2}, {"budget": "nan"}, {"floor": -1}, {"deadline_ms": 0}, {"priority": 9}, {"top": 0}]
)
def test_parameters_out_of_bounds(client: TestClient, asked: dict):
    [name] = asked
    assert f"a parameter is out of bounds: {name}:" in refused(
        client.post("/predict", content=png(), params=asked), 422
    )


# Limits.


def test_a_body_that_is_too_large_is_not_read(client: TestClient):
    large = client.post("/predict", content=bytes(100_001))
    assert "at most 100,000 bytes" in refused(large, 413)
    # Without a length, what has come is counted.
    chunks = client.post("/predict", content=iter([bytes(40_000)] * 3))
    assert "at most 100,000 bytes" in refused(chunks, 413)
    lying = client.post("/predict", content=png(), headers={"content-length": "9" * 400})
    assert "at most 100,000 bytes" in refused(lying, 413)


def test_compressed_bodies_are_not_taken(client: TestClient):
    packed = client.post("/predict", content=zlib.compress(png()), headers={"content-encoding": "deflate"})
    assert "compressed bodies are not taken" in refused(packed, 415)


def test_a_body_that_takes_too_long_or_breaks_off():
    from starlette.requests import Request

    async def never() -> dict:
        await anyio.sleep_forever()
        raise AssertionError

    async def gone() -> dict:
        return {"type": "http.disconnect"}

    async def body(receive: Any) -> bytes:
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
        place = Room(requests=1, size=1, refused=lambda kind: None).enter()
        return await read(Request(scope, receive), Limits(seconds=0.001), place)

    for receive, status in ((never, 408), (gone, 499)):
        with pytest.raises(RequestError) as error:
            anyio.run(body, receive)
        assert error.value.status == status
    with pytest.raises(ValueError, match="pixels must be above 0 and finite; got 0"):
        Limits(pixels=0)


def test_a_full_server_says_when_to_come_back(served: Gated):
    from dataclasses import replace

    engine = Engine(served, replace(PATIENT, capacity=1), batch=4)
    with TestClient(application(engine)) as client:
        until_ready(client)
        served.shut()
        running = engine.submit(engine.order(1), pictures())
        assert served.entered.wait(WAIT)
        waiting = engine.submit(engine.order(1), pictures())
        full = client.post("/predict", content=png())
        assert "1 pictures wait already" in refused(full, 429)
        assert int(full.headers["retry-after"]) >= 1
        served.gate.set()
        assert running.result(WAIT).batch == waiting.result(WAIT).batch == 1
    late = TestClient(application(engine)).post("/predict", content=png())
    assert "the server is stopping" in refused(late, 503)


def test_a_crash_is_told_without_its_details(client: TestClient, served: Gated, caplog):
    served.error = RuntimeError("secret path")
    response = client.post("/predict", content=png())
    served.error = None
    assert refused(response, 503) == "the batch failed; ask again."
    assert "secret path" not in response.text
    assert "secret path" in caplog.text
    assert client.post("/predict", content=png()).status_code == 200


def test_a_fault_of_ours_is_an_answer_too(caplog):
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("inner secret")

    client = TestClient(Guard(broken, keys=Keys({}), metrics=Metrics()))
    response = client.get("/anything")
    assert refused(response, 500) == "the server failed; its log says why."
    assert "inner secret" in caplog.text


# Keys, ids, metrics and the log.


def test_keys():
    keys = Keys({"ann": "s3cret", "bob": "t0ken"})
    assert [keys.name(secret) for secret in (b"s3cret", b"t0ken", b"", b"s3cre", b"\xff")] == [
        "ann",
        "bob",
        None,
        None,
        None,
    ]
    for secrets in ({"ann": ""}, {"ann": "same", "bob": "same"}):
        with pytest.raises(ValueError, match="every key needs a secret of its own"):
            Keys(secrets)


def test_without_a_key_only_health_is_told(served: Gated, caplog):
    caplog.set_level(logging.INFO, "nestor.serving")
    engine = Engine(served, PATIENT, batch=1)
    with TestClient(application(engine, keys=Keys({"ann": "s3cret"}))) as client:
        until_ready(client)
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic s3cret"},
            {"x-api-key": "wrong"},
        ):
            for path in ("/v2/models/elastic", "/metrics", "/openapi.json", "/nothing"):
                response = client.get(path, headers=headers)
                assert "an API key is needed" in refused(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
        for headers in (
            {"authorization": "Bearer s3cret"},
            {"x-api-key": "s3cret"},
            {"authorization": "Bearer of a proxy", "x-api-key": "s3cret"},
        ):
            assert client.post("/predict", content=png(), headers=headers).status_code == 200
    assert "s3cret" not in caplog.text
    assert "s3cret" not in str([vars(record) for record in caplog.records])
    assert any(getattr(record, "facts", {}).get("key") == "ann" for record in caplog.records)


def test_ids_go_through_and_nothing_else_does(client: TestClient):
    assert client.get("/v2", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for odd in ("a b", "x" * 65, "<script>", ""):
        given = client.get("/v2", headers={"x-request-id": odd}).headers["x-request-id"]
        assert len(given) == 32
        assert given != odd


def test_metrics_count_what_happened(client: TestClient):
    def found(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    before = found('nestor_pictures_total{budget="0.5"}')
    client.post("/predict", content=png(), params={"budget": 0.5})
    assert found('nestor_pictures_total{budget="0.5"}') == before + 1
    assert found('nestor_requests_total{route="/predict",status="200"}') >= 1
    assert found("nestor_ready ") == 1
    client.get("/v2/models/one")
    client.get("/v2/models/two")
    routes = {line.split('"')[1] for line in client.get("/metrics").text.splitlines() if 'route="' in line}
    assert "/v2/models/{name}" in routes
    assert not any("two" in route for route in routes)


def test_the_log_has_a_line_of_json_for_each_request(client: TestClient, caplog):
    caplog.set_level(logging.INFO, "nestor.serving")
    client.post("/predict", content=png(), headers={"x-request-id": "seen"}, params={"budget": 0.5})
    [record] = [each for each in caplog.records if getattr(each, "facts", {}).get("request_id") == "seen"]
    line = json.loads(Lines().format(record))
    assert line.items() >= {"level": "info", "route": "/predict", "status": 200, "budget": 0.5, "batch": 1}.items()
    assert "\n" not in Lines().format(record)


def test_the_document_names_every_route(client: TestClient):
    document = client.get("/openapi.json").json()
    infer = document["paths"]["/v2/models/{name}/infer"]["post"]
    assert {"200", "400", "404", "413", "429", "503", "504"} <= infer["responses"].keys()
    assert infer["requestBody"]["content"].keys() == {"application/json", "application/octet-stream"}
    assert "multipart/form-data" in document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert "securitySchemes" not in document["components"]
    refused(client.delete("/predict"), 405)
    assert client.delete("/predict").headers["allow"] == "POST"


# A real socket: a client that nobody here wrote, signals, and the command.


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
