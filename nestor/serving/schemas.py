"""The shapes of what the server answers, for its OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Failure(BaseModel):
    """Why a request got no result, and whether the same request may get one later."""

    error: str
    code: str
    retryable: bool
    request_id: str


class Label(BaseModel):
    """A class and how probable it is."""

    label: str
    probability: float


class Routing(BaseModel):
    """Which expert each patch took, row by row; 0 is the narrowest."""

    experts: list[list[int]]


class Prediction(BaseModel):
    """What a picture shows, and how the answer came about: milliseconds, rows of the batch and of the queue."""

    model: str
    version: str
    labels: list[Label]
    budget: float
    batch: int
    queue: int
    queue_ms: float
    batch_ms: float
    ms: float
    request_id: str
    routing: Routing | None = None


class Live(BaseModel):
    """Whether the server runs."""

    live: bool


class Ready(BaseModel):
    """Whether requests are taken."""

    ready: bool


class Server(BaseModel):
    """What the server is and which extensions of the protocol it knows."""

    name: str
    version: str
    extensions: list[str]


class Tensor(BaseModel):
    """A tensor of a network: -1 stands for any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class Model(BaseModel):
    """A network: its tensors, declared budgets and classes."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: dict[str, Any]


class Output(Tensor):
    """A tensor that was asked for; its numbers are in `data`, or in the bytes behind the JSON."""

    parameters: dict[str, Any] | None = None
    data: list[float] | None = None


class Inferred(BaseModel):
    """An answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[Output]
