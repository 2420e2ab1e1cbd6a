"""The server over HTTP: the protocol, pictures, and every error of these."""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from asking import LABELS, binary, infer, network, png, refused, served_to
from fastapi.testclient import TestClient
from test_serving_engine import Gated, pictures


@pytest.fixture(scope="module")
def served() -> Gated:
    return network()


@pytest.fixture(scope="module")
def client(served: Gated) -> Iterator[TestClient]:
    with served_to(served) as client:
        yield client


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
