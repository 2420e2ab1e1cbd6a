"""What tests of the server ask over HTTP, and what an error must say."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fastapi.testclient import TestClient
from nets import small
from PIL import Image
from running import until
from test_serving_engine import PATIENT, Gated

from nestor.serving.engine import Engine
from nestor.serving.guard import Limits
from nestor.serving.http import application
from nestor.serving.metrics import Metrics

LABELS = ("cat", "dog", "newt")


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


@contextmanager
def served_to(network: Gated) -> Iterator[TestClient]:
    """A client of a server without hurry and with narrow limits."""
    metrics = Metrics()
    engine = Engine(network, PATIENT, batch=4, watch=metrics)
    app = application(engine, limits=Limits(size=100_000, pixels=10_000), metrics=metrics)
    with TestClient(app) as client:
        until_ready(client)
        yield client
