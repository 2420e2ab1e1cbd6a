"""OpenTelemetry, where it is installed and asked for by its own variables: a span for each request."""

from __future__ import annotations

import logging
import os
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Tracer

_log = logging.getLogger("nestor.serving")
_ASKED = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def asked() -> bool:
    """Whether OpenTelemetry's own variables ask for traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(os.environ.get(name) for name in _ASKED)


def tracer() -> Tracer | None:
    """What makes spans, sent by OTLP over HTTP as the variables say; None where nobody asks for them.

    A provider that is set already, by `opentelemetry-instrument` for instance, is used as it is.

    Raises:
        ValueError: the variables ask for another exporter than `otlp`.
    """
    if not asked():
        return None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        _log.warning("traces are asked for, but OpenTelemetry is missing. Install it: pip install 'nestor[telemetry]'")
        return None
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
        if exporter != "otlp":
            raise ValueError(
                f"OTEL_TRACES_EXPORTER must be otlp or none; got {exporter!r}. Others: opentelemetry-instrument nestor."
            )
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("nestor.serving")


def span(tracer: Tracer, *, seconds: float, headers: Mapping[bytes, bytes], line: Mapping[str, Any]) -> None:
    """Tell of a request that has ended.

    Args:
        tracer: makes the span.
        seconds: that it took.
        headers: of the request; `traceparent` says what it is a part of.
        line: what the log says of it.
    """
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind, Status, StatusCode

    end = time.time_ns()
    given = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
    facts = {name: line[name] for name in ("budget", "batch", "queue", "queue_ms", "batch_ms") if name in line}
    attributes = {
        "http.request.method": line["method"],
        "http.route": line["route"],
        "http.response.status_code": line["status"],
        "nestor.request_id": line["request_id"],
    } | {f"nestor.{name}": value for name, value in facts.items()}
    if "error" in line:
        attributes["error.type"] = line["error"]
    made = tracer.start_span(
        f"{line['method']} {line['route']}",
        context=extract(given),
        kind=SpanKind.SERVER,
        attributes=attributes,
        start_time=end - round(1e9 * seconds),
    )
    if line["status"] >= 500:
        made.set_status(Status(StatusCode.ERROR))
    made.end(end)
