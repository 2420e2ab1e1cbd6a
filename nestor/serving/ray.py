"""The server on many machines: an application of Ray Serve whose replicas each have an engine and a controller.

serve run nestor.serving.ray:app model=/models/elastic p95_ms=80 replicas=2 most_replicas=8
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nestor.serving.controller import Policy
from nestor.serving.engine import Engine
from nestor.serving.http import application
from nestor.serving.metrics import Metrics
from nestor.serving.open import open_served

if TYPE_CHECKING:
    from fastapi import FastAPI

# Who waits is the engine's affair, so that Ray hands requests on as they come.
ONGOING = 1024


class Settings(BaseModel):
    """What stands behind `serve run nestor.serving.ray:app`, as NAME=VALUE.

    Attributes:
        model: folder of the network, on every machine.
        p95_ms: milliseconds within which 95 of 100 requests shall be answered.
        budgets: parted by commas; by default the network's own.
        size: side of the pictures, or length of the sequences.
        precision: number format of the weights, float32, bfloat16 or int8.
        name: of the model, in paths; by default the folder's.
        batch: the largest batch.
        replicas: that are always there.
        most_replicas: that there may be; by default no more.
        busy: requests that a replica has under way on average before another one is started.
        cores: of a processor, for each replica.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    p95_ms: float = Field(default=100.0, gt=0)
    budgets: str | None = None
    size: int | None = Field(default=None, gt=0)
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    name: str | None = None
    batch: int = Field(default=16, gt=0)
    replicas: int = Field(default=1, gt=0)
    most_replicas: int | None = None
    busy: float = Field(default=8.0, gt=0)
    cores: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Settings:
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise ValueError(f"most_replicas must be at least replicas, {self.replicas}; got {self.most_replicas}.")
        return self


def replica(settings: Settings) -> FastAPI:
    """The server of one replica, with its network loaded and every budget warmed up.

    Raises:
        FileNotFoundError: there is no such folder on this machine.
        ValueError: it cannot be served, or not within the promise.
    """
    import torch

    if settings.cores >= 1:
        # Replicas of one machine would else take each other's cores.
        torch.set_num_threads(int(settings.cores))
    budgets = None if settings.budgets is None else tuple(float(each) for each in settings.budgets.split(","))
    served = open_served(settings.model, budgets=budgets, size=settings.size, precision=settings.precision)
    metrics = Metrics()
    engine = Engine(served, Policy(target=settings.p95_ms / 1e3), batch=settings.batch, watch=metrics)
    # Ray sends requests as soon as this returns.
    engine.start()
    return application(engine, name=settings.name or Path(settings.model).resolve().name, metrics=metrics)


def options(settings: Settings) -> dict[str, Any]:
    """What Ray is told of the replicas: how many, on which cores, and when there shall be more."""
    found: dict[str, Any] = {
        "name": "nestor",
        "max_ongoing_requests": ONGOING,
        # A replica answers who is in before it goes.
        "graceful_shutdown_timeout_s": 40,
        "ray_actor_options": {"num_cpus": settings.cores},
    }
    if settings.most_replicas is None:
        return found | {"num_replicas": settings.replicas}
    return found | {
        "autoscaling_config": {
            "min_replicas": settings.replicas,
            "max_replicas": settings.most_replicas,
            "target_ongoing_requests": settings.busy,
        }
    }


def app(settings: dict[str, Any]) -> Any:
    """The application, for `serve run` or `ray.serve.run(app({"model": ...}))`.

    Raises:
        ImportError: Ray Serve is missing.
        ValueError: a setting is not known, or out of bounds.
    """
    try:
        # A type checker takes this file itself for Ray.
        from ray import serve  # pyright: ignore[reportAttributeAccessIssue]
    except ModuleNotFoundError as error:
        raise ImportError("Many machines need Ray Serve. Install it: pip install 'nestor[serve,ray]'") from error
    asked = Settings(**settings)
    return serve.deployment(**options(asked))(serve.ingress(lambda: replica(asked))()).bind()
