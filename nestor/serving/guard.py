"""What stands before every request: its id, who asks, how much may be sent and for how long, and a line in the log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
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

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from nestor.serving.metrics import Metrics

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
_NAMES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported",
    422: "bad_request",
}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request may ask of the server before anything is decoded.

    Attributes:
        size: bytes of a body.
        pixels: of a picture.
        seconds: that sending a body may take.

    Raises:
        ValueError: a limit is not above 0.
    """

    size: int = 32_000_000
    pixels: int = 16_000_000
    seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("size", "pixels", "seconds"):
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


async def read(request: Request, limits: Limits) -> bytes:
    """The body, as far as it keeps the limits.

    Raises:
        RequestError: it is too large, too slow, encoded, or cut off.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "compressed bodies are not taken. Send the body as it is.")
    too_large = RequestError(413, f"a body may have at most {limits.size:,} bytes.")
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared[:20]) > limits.size:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.size:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise RequestError(408, f"the body took longer than {limits.seconds:g} s to arrive.") from None
    except ClientDisconnect:
        raise RequestError(400, "the client left before its request was complete.") from None
    return b"".join(parts)


class Guard:
    """Wraps an application: nothing gets in without a key, out without an id, or by without a line in the log."""

    def __init__(self, app: ASGIApp, *, keys: Keys, metrics: Metrics):
        self.app, self.keys, self.metrics = app, keys, metrics

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
            await self.app(scope, receive, answer)
        except Exception as error:
            if not isinstance(error, RequestError):
                _log.exception("request %s failed", trace.id)
            if not status:
                await reply(error, trace)(scope, receive, answer)
        finally:
            self._note(scope, trace, status)

    def _name(self, headers: Mapping[bytes, bytes]) -> str:
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        # Either header will do, whatever a proxy wrote into the other one.
        offered = (secret.strip() if scheme.lower() == b"bearer" else b"", headers.get(b"x-api-key", b""))
        for name in [self.keys.name(each) for each in offered]:
            if name is not None:
                return name
        raise RequestError(401, "an API key is needed: Authorization: Bearer KEY.")

    def _note(self, scope: MutableMapping[str, Any], trace: Trace, status: int) -> None:
        seconds = time.perf_counter() - trace.began
        # The route's pattern, since a path may hold anything and each one would be a counter of its own.
        route = getattr(scope.get("route"), "path", "unknown")
        self.metrics.answered(route, status, seconds)
        # Query strings may hold what is nobody's business, headers hold secrets: neither is written down.
        line = {"request_id": trace.id, "key": trace.key, "method": scope["method"], "route": route}
        line |= {"status": status, "ms": round(1e3 * seconds, 3)} | trace.facts
        _log.info("answered", extra={"facts": line})


class Lines(logging.Formatter):
    """A log of JSON, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _digest(secret: bytes) -> bytes:
    # Of one length, so that comparing them tells nothing about how long a secret is.
    return hashlib.sha256(secret).digest()
