"""OpenTelemetry: a span for each request, where it is asked for, and nothing where it is not."""

from collections.abc import Iterator

import pytest
from asking import network, png, until_ready
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from test_serving_engine import PATIENT, Gated

from nestor.serving import spans
from nestor.serving.engine import Engine
from nestor.serving.http import application

VARIABLES = (*spans._ASKED, "OTEL_SDK_DISABLED")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def traced() -> Iterator[tuple[TestClient, InMemorySpanExporter, Gated]]:
    exporter, provider, served = InMemorySpanExporter(), TracerProvider(), network()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = application(Engine(served, PATIENT, batch=4), tracer=provider.get_tracer("test"))
    with TestClient(app) as client:
        until_ready(client)
        yield client, exporter, served
    provider.shutdown()


def test_a_request_is_a_span(traced: tuple[TestClient, InMemorySpanExporter, Gated]):
    client, exporter, _ = traced
    headers = {"x-request-id": "mine", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    client.post("/predict", content=png(), params={"budget": 0.5}, headers=headers)
    [span] = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("POST /predict", SpanKind.SERVER)
    assert span.parent is not None
    assert span.context is not None
    assert (span.context.trace_id, span.parent.span_id) == (int("a" * 32, 16), int("b" * 16, 16))
    found = dict(span.attributes or {})
    assert found.pop("nestor.queue_ms") >= 0  # pyright: ignore[reportOperatorIssue]
    assert found.pop("nestor.batch_ms") > 0  # pyright: ignore[reportOperatorIssue]
    assert found == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "nestor.request_id": "mine",
        "nestor.budget": 0.5,
        "nestor.batch": 1,
        "nestor.queue": 0,
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time < span.end_time
    assert span.status.status_code is StatusCode.UNSET


def test_what_fails_is_a_span_too_and_probes_are_none(traced: tuple[TestClient, InMemorySpanExporter, Gated]):
    client, exporter, served = traced
    served.error = RuntimeError("broken")
    client.post("/predict", content=png())
    client.get("/nothing")
    client.get("/v2/health/live")
    crashed, unknown = exporter.get_finished_spans()
    assert (crashed.attributes or {})["error.type"] == "crashed"
    assert crashed.status.status_code is StatusCode.ERROR
    assert unknown.name == "GET unknown"
    assert unknown.status.status_code is StatusCode.UNSET


def test_nobody_is_told_who_does_not_ask(monkeypatch: pytest.MonkeyPatch):
    assert spans.tracer() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name, value in (("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "true")):
        with monkeypatch.context() as unset:
            unset.setenv(name, value)
            assert spans.tracer() is None


def test_its_own_variables_ask_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "elastic")
    tracer = spans.tracer()
    assert tracer is not None
    # Nothing was ended, so that nothing is sent.
    span = tracer.start_span("one")
    assert span.resource.attributes["service.name"] == "elastic"  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with pytest.raises(ValueError, match="must be otlp or none; got 'console'"):
        spans.tracer()


def test_who_asks_without_it_is_told_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setattr(spans, "find_spec", lambda name: None)
    assert spans.tracer() is None
    assert "pip install 'nestor[telemetry]'" in caplog.text
