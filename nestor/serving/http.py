"""The server's front: the Open Inference Protocol, pictures in and labels out, and metrics."""

from __future__ import annotations

import threading
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nestor import __version__
from nestor.serving import forms, pictures, schemas, spans, tensors
from nestor.serving.aside import Aside
from nestor.serving.document import PICTURE, document, fails
from nestor.serving.gone import unless_gone
from nestor.serving.guard import Guard, Keys, Limits, RequestError, read, reply, too_much_json
from nestor.serving.metrics import Metrics
from nestor.serving.order import HIGH, RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from opentelemetry.trace import Tracer
    from torch import Tensor

    from nestor.serving.answer import Answer
    from nestor.serving.engine import Engine
    from nestor.serving.network import Preparation
    from nestor.serving.order import Order

_HEADER = "inference-header-content-length"
_Share = Annotated[float | None, Query(ge=0, le=1)]
_INFER: dict[str, Any] = {
    "response_model": schemas.Inferred,
    "response_model_exclude_none": True,
    "responses": fails(400, 404, 408, 413, 415, 429, 500, 503, 504),
}

_PREDICT: dict[str, Any] = {
    "response_model": schemas.Prediction,
    "response_model_exclude_none": True,
    "responses": fails(400, 408, 413, 415, 422, 429, 500, 503, 504),
    "openapi_extra": PICTURE,
}


class Front:
    """The routes of one server.

    Once it is asked to leave it is no longer ready, though whoever is in gets an answer.
    """

    def __init__(self, engine: Engine, *, name: str, limits: Limits, metrics: Metrics, decoders: int = 2):
        self.engine, self.name, self.limits, self.metrics = engine, name, limits, metrics
        self._left: float | None = None
        self._aside = Aside(decoders, clock=engine.clock, refused=metrics.refused)

    @property
    def leaving(self) -> bool:
        """Whether the server is asked to stop."""
        return self._left is not None

    def leave(self) -> None:
        """Be asked to stop."""
        if self._left is None:
            self._left = self.engine.clock()

    def remaining(self, patience: float) -> float:
        """What is left of so many seconds from the moment that the server was asked to stop."""
        gone = 0.0 if self._left is None else self.engine.clock() - self._left
        return max(0.0, patience - gone)

    async def live(self) -> schemas.Live:
        """Whether the server runs."""
        return schemas.Live(live=True)

    async def ready(self) -> Response:
        """Whether every budget is warmed up and requests are taken."""
        ready = self.engine.ready and not self.leaving
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def server(self) -> schemas.Server:
        """What the server is."""
        return schemas.Server(name="nestor", version=__version__, extensions=["binary_tensor_data"])

    async def model(self, request: Request) -> Response:
        """What a network takes, gives and allows."""
        self._known(request)
        return JSONResponse(tensors.metadata(self.name, self.engine.version, self.engine.served))

    async def model_ready(self, request: Request) -> Response:
        """Whether a network takes requests."""
        self._known(request)
        return await self.ready()

    async def infer(self, request: Request) -> Response:
        """Run a network on tensors.

        `parameters` may hold `budget` (fixed), `floor`, `ceiling`, `deadline_ms` or `timeout` (microseconds), and
        `priority` (1 first, 3 last); the answer's hold budget, batch, queue and milliseconds.
        """
        self._known(request)
        # Its wishes are in its body. Who would be turned away whatever they are need not send it.
        self._order(request, 1, self.engine.clock(), {"priority": HIGH, "deadline_ms": 600_000})
        inference = await self._inference(request)
        order = inference.order
        answer = await self._answer(request, order, inference.items)
        content, size = tensors.write(self.name, inference, answer)
        if size is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={_HEADER: str(size)})

    async def predict(
        self,
        request: Request,
        budget: _Share = None,
        floor: _Share = None,
        ceiling: _Share = None,
        deadline_ms: Annotated[float | None, Query(gt=0, le=600_000)] = None,
        priority: Annotated[int, Query(ge=0, le=3)] = 0,
        top: Annotated[int, Query(ge=1, le=1000)] = 5,
        routing: bool = False,
    ) -> Response:
        """Say what a picture shows. The picture is the body, or the part `picture` of a form."""
        asked = {"budget": budget, "floor": floor, "ceiling": ceiling, "deadline_ms": deadline_ms, "priority": priority}
        prepare = self.engine.served.prepare
        if prepare is None:
            raise RequestError(400, f"{self.name!r} takes no pictures. Ask POST /v2/models/{self.name}/infer.")
        # Who is turned away is so before the picture is sent, and again before it is decoded.
        self._order(request, 1, self.engine.clock(), asked)
        order, images = await self._images(request, asked, prepare)
        answer = await self._answer(request, order, images)
        content = self._prediction(request, answer, top) | ({"routing": _routing(answer)} if routing else {})
        return JSONResponse(content)

    async def numbers(self) -> Response:
        """Everything that is counted, in Prometheus's text format."""
        return Response(self.metrics.text(self.engine), media_type="text/plain; version=0.0.4")

    async def _inference(self, request: Request) -> tensors.Inference:
        header, policy = request.headers.get(_HEADER), self.engine.policy
        most = min(self.limits.json, self.limits.size)
        body = await read(request, self.limits, request.state.trace.place, json=header is None)
        # A number of another form, or beyond the body, is told so when it is read.
        if header is not None and header.isascii() and header.isdigit() and most < int(header[:20]) <= len(body):
            raise too_much_json(most)
        arrived, served = self.engine.clock(), self.engine.served

        def admit(rows: int, parameters: Mapping[str, Any]) -> Order:
            return self._order(request, rows, arrived, parameters)

        # How late it may be is not known before it is read.
        with _asked():
            return await self._aside.do(
                lambda: tensors.read(body, header, served, admit),
                arrived=arrived,
                promise=policy.patience,
                patience=policy.patience,
            )

    async def _images(self, request: Request, asked: Mapping[str, Any], prepare: Preparation) -> tuple[Order, Tensor]:
        body = await read(request, self.limits, request.state.trace.place)
        arrived, policy = self.engine.clock(), self.engine.policy
        order = self._order(request, 1, arrived, asked)
        kind, pixels = request.headers.get("content-type", ""), self.limits.pixels
        formed = kind.lower().startswith("multipart/form-data")

        def work() -> Tensor:
            picture = pictures.check(forms.file(body, kind, "picture") if formed else body)
            return prepare(picture, max_pixels=pixels)

        with _asked(), self.engine.coming(order):
            images = await self._aside.do(
                work, arrived=arrived, promise=order.within(policy.target), patience=order.within(policy.patience)
            )
        return order, images

    async def _answer(self, request: Request, order: Order, items: Tensor) -> Answer:
        future = self.engine.submit(order, items)
        answer = await unless_gone(request, future, lambda: self.engine.forget(order))
        request.state.trace.facts |= tensors.facts(answer)
        return answer

    def _order(self, request: Request, rows: int, arrived: float, parameters: Mapping[str, Any]) -> Order:
        with _asked():
            wishes = tensors.wishes(parameters)
            return self.engine.order(rows, arrived=arrived, key=request.state.trace.key, **wishes)

    def _prediction(self, request: Request, answer: Answer, top: int) -> dict[str, Any]:
        trace = request.state.trace
        chances, places = answer.logits[0].softmax(-1).topk(min(top, answer.logits.shape[-1]))
        labels = [
            {"label": answer.served.labels[place], "probability": chance}
            for place, chance in zip(places.tolist(), chances.tolist(), strict=True)
        ]
        milliseconds = round(1e3 * (time.perf_counter() - trace.began), 3)
        told = {"model": self.name, "version": str(answer.version), "labels": labels} | tensors.facts(answer)
        return told | {"ms": milliseconds, "request_id": trace.id}

    def _known(self, request: Request) -> None:
        # Names are compared, never looked for on disk.
        if request.path_params["name"] != self.name:
            raise RequestError(404, f"there is no such model; this server has {self.name!r}.")
        if request.path_params.get("version", str(self.engine.version)) != str(self.engine.version):
            raise RequestError(404, f"there is no such version of {self.name!r}; now it is {self.engine.version}.")


def application(
    engine: Engine,
    *,
    name: str = "elastic",
    limits: Limits | None = None,
    keys: Keys | None = None,
    metrics: Metrics | None = None,
    patience: float = 30.0,
    failed: Callable[[BaseException], None] | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """The server as an ASGI application; its engine is started with it, and drained before it ends.

    Args:
        engine: answers.
        name: of the model, in paths.
        limits: of one request.
        keys: who may ask; by default everybody.
        metrics: counted in; the engine's watch.
        patience: seconds from being asked to stop until whoever is in must be answered.
        failed: told why the engine could not start.
        tracer: makes a span of each request; by default what OpenTelemetry's own variables ask for.
    """
    metrics = Metrics() if metrics is None else metrics
    limits = Limits() if limits is None else limits
    front = Front(engine, name=name, limits=limits, metrics=metrics)

    def start() -> None:
        try:
            engine.start()
        except BaseException as error:
            if failed is None:
                raise
            failed(error)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        # The server is live, though not ready, while it warms up.
        threading.Thread(target=start, name="nestor-start", daemon=True).start()
        yield
        # Those who wait for answers have had their part of it by now.
        await anyio.to_thread.run_sync(engine.drain, front.remaining(patience))

    app = FastAPI(title="Nestor", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.state.front = front
    _route(app, front)
    keys = Keys({}) if keys is None else keys
    described = document(app, name=name, served=engine.served, most=engine.most, keyed=bool(keys))
    app.openapi = lambda: described
    tracer = spans.tracer() if tracer is None else tracer
    app.add_middleware(Guard, keys=keys, metrics=metrics, limits=limits, tracer=tracer)
    for kind in (RequestError, RefusedError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _told)
    return app


def _route(app: FastAPI, front: Front) -> None:
    ready: dict[str, Any] = {"response_model": schemas.Ready, "methods": ["GET"]}
    not_ready: dict[int | str, dict[str, Any]] = {
        503: {"model": schemas.Ready, "description": "Not yet, or no longer."}
    }
    add = app.add_api_route
    add("/v2/health/live", front.live, methods=["GET"])
    add("/v2/health/ready", front.ready, responses=not_ready, **ready)
    add("/v2", front.server, methods=["GET"])
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        add(path, front.model, methods=["GET"], response_model=schemas.Model, responses=fails(404))
        add(f"{path}/ready", front.model_ready, responses=fails(404) | not_ready, **ready)
        add(f"{path}/infer", front.infer, methods=["POST"], **_INFER)
    add("/predict", front.predict, methods=["POST"], **_PREDICT)
    add("/metrics", front.numbers, methods=["GET"], response_class=PlainTextResponse)


@contextmanager
def _asked() -> Iterator[None]:
    """Whatever is wrong within was asked wrongly."""
    try:
        yield
    except ValueError as error:
        raise RequestError(400, str(error)) from error


async def _told(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return reply(RequestError(error.status_code, str(error.detail), error.headers), request.state.trace)
    if isinstance(error, RequestValidationError):
        found = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        return reply(RequestError(422, f"a parameter is out of bounds: {found}."), request.state.trace)
    return reply(error, request.state.trace)


def _routing(answer: Answer) -> dict[str, Any] | None:
    if answer.experts is None:
        return None
    return {"experts": answer.experts[0].unflatten(0, answer.served.cells).tolist()}
