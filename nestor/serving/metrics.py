"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from nestor.serving.engine import Engine
    from nestor.serving.scheduler import Batch

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("nestor_requests", "Requests answered.", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "nestor_request_seconds", "From the request to its answer.", ["route"], buckets=_SECONDS, registry=own
        )
        self.pictures = Counter("nestor_pictures", "Pictures run, by budget.", ["budget"], registry=own)
        self.batches = Histogram("nestor_batch_pictures", "Pictures of a batch.", buckets=_ROWS, registry=own)
        self.service = Histogram("nestor_batch_seconds", "Time of a batch.", buckets=_SECONDS, registry=own)
        self.refusals = Counter("nestor_refused", "Requests without a result.", ["reason"], registry=own)
        self.failures = Counter("nestor_reload_failures", "Networks that could not be loaded.", registry=own)
        self.revivals = Counter("nestor_revivals", "Times that a lost network was brought back.", registry=own)
        self._budget = Gauge("nestor_budget", "What a request is given now.", registry=own)
        self._queue = Gauge("nestor_queue_pictures", "Pictures that wait.", registry=own)
        self._ready = Gauge("nestor_ready", "1 when requests are taken.", registry=own)
        self._version = Gauge("nestor_model_version", "Counted from 1.", registry=own)

    def batch(self, batch: Batch, seconds: float) -> None:
        """A batch has ended."""
        self.pictures.labels(f"{batch.budget:g}").inc(batch.rows)
        self.batches.observe(batch.rows)
        self.service.observe(seconds)

    def refused(self, kind: str) -> None:
        """A request got no result."""
        self.refusals.labels(kind).inc()

    def revived(self) -> None:
        """The network was lost, and is back."""
        self.revivals.inc()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered, well or not."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self, engine: Engine) -> bytes:
        """Everything, in Prometheus's text format."""
        self._budget.set(engine.budget)
        self._queue.set(engine.rows)
        self._ready.set(engine.ready)
        self._version.set(engine.version)
        return generate_latest(self.registry)
