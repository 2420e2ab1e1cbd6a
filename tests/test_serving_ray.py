"""The application for Ray Serve, without a cluster: a replica's server, and what Ray is told."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from asking import LABELS, infer, png
from fastapi.testclient import TestClient
from nets import small
from pydantic import ValidationError
from test_serving_engine import pictures

from nestor.models.saved import save_model
from nestor.serving.network import ServedViT
from nestor.serving.ray import Settings, app, options, replica


@pytest.fixture
def folder(tmp_path: Path) -> str:
    save_model(small(labels=LABELS), tmp_path / "elastic")
    return str(tmp_path / "elastic")


def test_a_replica_is_ready_when_it_is_there_and_says_what_the_network_says(folder: str, one_thread: None):
    server = replica(Settings(model=folder, p95_ms=20_000, budgets="0.5,1", batch=4))
    with TestClient(server) as client:
        assert client.get("/v2/health/ready").json() == {"ready": True}
        assert client.get("/v2/models/elastic").json()["parameters"]["budgets"] == [0.5, 1.0]
        assert client.post("/predict", content=png()).json()["labels"][0]["label"] in LABELS
        asked = infer(pictures(2), parameters={"budget": 0.5}, outputs=[{"name": "logits"}])
        [logits] = client.post("/v2/models/elastic/infer", json=asked).json()["outputs"]
        offline = ServedViT(small(labels=LABELS), (0.5, 1.0)).run(pictures(2), 0.5).logits
        torch.testing.assert_close(torch.tensor(logits["data"]).reshape(2, 3), offline, rtol=0, atol=1e-5)
        assert "nestor_pictures_total" in client.get("/metrics").text


def test_what_ray_is_told():
    fixed = options(Settings(model="m", replicas=2, cores=4))
    assert (fixed["num_replicas"], fixed["ray_actor_options"]) == (2, {"num_cpus": 4.0})
    assert "autoscaling_config" not in fixed
    growing = options(Settings(model="m", replicas=1, most_replicas=4, busy=5))
    assert growing["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 5.0}
    assert "num_replicas" not in growing
    # The engine decides who waits; it can not where Ray holds requests back.
    assert growing["max_ongoing_requests"] > 16


def test_the_application_builds_a_server_on_each_replica(folder: str, monkeypatch: pytest.MonkeyPatch):
    told: dict[str, Any] = {}

    def deployment(**given: Any) -> Any:
        told.update(given)
        return lambda wrapped: SimpleNamespace(bind=lambda: wrapped)

    fake = ModuleType("ray")
    fake.serve = SimpleNamespace(deployment=deployment, ingress=lambda build: lambda: build)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    # As `serve run` hands them over.
    build = app({"model": folder, "p95_ms": "20000", "replicas": "2", "name": "mine", "cores": "0"})
    assert told["num_replicas"] == 2
    with TestClient(build()) as client:
        assert client.get("/v2/models/mine").json()["name"] == "mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model"),
        ({"model": "m", "p95": "80"}, "Extra inputs"),
        ({"model": "m", "p95_ms": "0"}, "greater than 0"),
        ({"model": "m", "replicas": "3", "most_replicas": "2"}, "most_replicas must be at least replicas, 3; got 2"),
    ],
)
def test_wrong_settings(settings: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        Settings(**settings)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="Many machines need Ray Serve"):
        app({"model": "m"})


def test_a_folder_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        replica(Settings(model="nowhere", cores=0))
