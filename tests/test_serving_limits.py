"""The server over HTTP: limits, keys, ids, metrics and the log."""

import json
import logging
import zlib
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from asking import network, png, refused, served_to, until_ready
from fastapi.testclient import TestClient
from test_serving_engine import PATIENT, WAIT, Gated, pictures

from nestor.serving.engine import Engine
from nestor.serving.guard import Guard, Keys, Limits, RequestError, read
from nestor.serving.http import application
from nestor.serving.lines import Lines
from nestor.serving.metrics import Metrics
from nestor.serving.room import Room


@pytest.fixture(scope="module")
def served() -> Gated:
    return network()


@pytest.fixture(scope="module")
def client(served: Gated) -> Iterator[TestClient]:
    with served_to(served) as client:
        yield client


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
