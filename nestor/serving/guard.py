"""What stands before every request: its id, who asks, how much may be sent and for how long, and a line in the log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import logging
import math
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from nestor.serving.order import RefusedError
from nestor.serving.room import Room
from nestor.serving.spans import span

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from opentelemetry.trace import Tracer
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from nestor.serving.metrics import Metrics
    from nestor.serving.room import Place

_log = logging.getLogger("nestor.serving")
# What a monitor may ask without a key.
OPEN = ("/v2/health/live", "/v2/health/ready")
STATUS = {
    "overloaded": 429,
    "displaced": 429,
    "expired": 504,
    "draining": 503,
    "crashed": 503,
    "restarting": 503,
    "not_finite": 500,
}
# What is noted of who closed the connection and reads no answer, as nginx does.
LEFT = 499
_NAMES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported",
    422: "bad_request",
    LEFT: "left",
}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request, and all together, may ask of the server before anything is decoded.

    Attributes:
        size: bytes of a body.
        pixels: of a picture.
        seconds: that sending a body may take, and reading an answer.
        json: bytes of JSON in a body.
        requests: that may be under way at once.
        held: bytes of all bodies under way; one that is within `size` fits when it is alone.

    Raises:
        ValueError: a limit is not above 0.
    """

    size: int = 32_000_000
    pixels: int = 16_000_000
    seconds: float = 10.0
    json: int = 4_000_000
    requests: int = 512
    held: int = 256_000_000

    def __post_init__(self) -> None:
        for name in ("size", "pixels", "seconds", "json", "requests", "held"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite; got {getattr(self, name)}.")


class Keys:
    """Who may ask: names, each with a secret. With none, everybody may.

    Raises:
        ValueError: a secret is empty, or two share one.
    """

    def __init__(self, secrets: Mapping[str, str]):
        if not all(secrets.values()) or len(set(secrets.values())) < len(secrets):
            raise ValueError("every key needs a secret of its own; got an empty one, or the same one twice.")
        self._digests = {name: _digest(secret.encode()) for name, secret in secrets.items()}

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name(self, secret: bytes) -> str | None:
        """Whose secret this is. Takes equally long whatever is offered."""
        offered, found = _digest(secret), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(offered, digest):
                found = name
        return found


@dataclass
class Trace:
    """What is known of a request while it is answered; goes to the log and into error messages."""

    id: str
    key: str
    began: float
    place: Place | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class RequestError(Exception):
    """A request that is answered with an error: an HTTP status, a sentence, and headers, if any."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.headers = status, headers or {}


def reply(error: Exception, trace: Trace) -> JSONResponse:
    """An error as JSON: `error`, `code`, `retryable` and `request_id`."""
    headers = dict(error.headers) if isinstance(error, RequestError) else {}
    if isinstance(error, RefusedError):
        status, code, again = STATUS[error.kind], error.kind, error.after is not None
        if error.after is not None:
            headers["retry-after"] = str(max(1, math.ceil(error.after)))
    else:
        status = error.status if isinstance(error, RequestError) else 500
        code, again = _NAMES.get(status, "internal"), False
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        if status in (408, 413):
            # What else the client sends is not read.
            headers["connection"] = "close"
    message = str(error) if isinstance(error, RefusedError | RequestError) else "the server failed; its log says why."
    trace.facts["error"] = code
    content = {"error": message, "code": code, "retryable": again, "request_id": trace.id}
    return JSONResponse(content, status, headers)


async def read(request: Request, limits: Limits, place: Place, *, json: bool = False) -> bytes:
    """The body, as far as it keeps the limits; `json` says that all of it is to be read as JSON.

    Raises:
        RequestError: it is too large, too slow, encoded, or cut off.
        RefusedError: others fill the room that there is.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "compressed bodies are not taken. Send the body as it is.")
    most = min(limits.json, limits.size) if json else limits.size
    too_large = too_much_json(most) if json else RequestError(413, f"a body may have at most {most:,} bytes.")
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()) or int(declared[:20]) > most:
        raise too_large
    place.expect(int(declared[:20]))
    # Unlike a list that is joined, it is never there twice.
    body = io.BytesIO()
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                if body.tell() + len(part) > most:
                    raise too_large
                place.take(len(part))
                body.write(part)
    except TimeoutError:
        raise RequestError(408, f"the body took longer than {limits.seconds:g} s to arrive.") from None
    except ClientDisconnect:
        raise RequestError(LEFT, "the client left before its request was complete.") from None
    return body.getvalue()


def too_much_json(most: int) -> RequestError:
    """What is told to who sends numbers as text where bytes would do."""
    return RequestError(
        413,
        f"JSON may have at most {most:,} bytes. Send the numbers as bytes behind it: the binary tensor extension, "
        "Inference-Header-Content-Length.",
    )


class Guard:
    """Wraps an application: nothing gets in without a key, out without an id, or by without a line in the log."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        metrics: Metrics,
        limits: Limits | None = None,
        tracer: Tracer | None = None,
    ):
        limits = Limits() if limits is None else limits
        self.app, self.keys, self.metrics, self.tracer = app, keys, metrics, tracer
        self.room = Room(requests=limits.requests, size=max(limits.held, limits.size), refused=metrics.refused)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        trace = Trace(
            id=given if _ID.fullmatch(given) else uuid.uuid4().hex,
            key=scope["client"][0] if scope.get("client") else "",
            began=time.perf_counter(),
        )
        scope.setdefault("state", {})["trace"] = trace
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", trace.id.encode())]
            await send(message)

        try:
            if self.keys and scope["path"] not in OPEN:
                trace.key = self._name(headers)
            # However full it is here: who is well is not restarted.
            if scope["path"] not in OPEN:
                trace.place = self.room.enter()
            await self.app(scope, receive, answer)
        except Exception as error:
            if not isinstance(error, RequestError | RefusedError):
                _log.exception("request %s failed", trace.id)
            if not status:
                await reply(error, trace)(scope, receive, answer)
        finally:
            if trace.place is not None:
                trace.place.leave()
            self._note(scope, trace, status, headers)

    def _name(self, headers: Mapping[bytes, bytes]) -> str:
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        # Either header will do, whatever a proxy wrote into the other one.
        offered = (secret.strip() if scheme.lower() == b"bearer" else b"", headers.get(b"x-api-key", b""))
        for name in [self.keys.name(each) for each in offered]:
            if name is not None:
                return name
        raise RequestError(401, "an API key is needed: Authorization: Bearer KEY.")

    def _note(self, scope: MutableMapping[str, Any], trace: Trace, status: int, headers: Mapping[bytes, bytes]) -> None:
        seconds = time.perf_counter() - trace.began
        # The route's pattern, since a path may hold anything and each one would be a counter of its own.
        route = getattr(scope.get("route"), "path", "unknown")
        self.metrics.answered(route, status, seconds)
        # Query strings may hold what is nobody's business, headers hold secrets: neither is written down.
        line = {"request_id": trace.id, "key": trace.key, "method": scope["method"], "route": route}
        line |= {"status": status, "ms": round(1e3 * seconds, 3)} | trace.facts
        _log.info("answered", extra={"facts": line})
        if self.tracer is not None and scope["path"] not in OPEN:
            span(self.tracer, seconds=seconds, headers=headers, line=line)


def _digest(secret: bytes) -> bytes:
    # Of one length, so that comparing them tells nothing about how long a secret is.
    return hashlib.sha256(secret).digest()
