"""A server from its socket to its last answer: signals, draining, and another network without a dropped request."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from nestor.data.decode import quiet
from nestor.serving.engine import Engine
from nestor.serving.http import application
from nestor.serving.metrics import Metrics
from nestor.serving.punctual import punctual

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from nestor.serving.controller import Policy
    from nestor.serving.guard import Keys, Limits
    from nestor.serving.network import Served

_log = logging.getLogger("nestor.serving")
# Bytes of a request's line and headers.
_HEADERS = 16_384
# More than the requests that may be under way, so that who comes too many is told so in full; less than the 1024 files
# that a process may usually have open.
CONNECTIONS = 896


class Server(uvicorn.Server):
    """One process that serves a network until it is told to stop; then it is no longer ready, answers, and ends.

    Args:
        load: gives the network, and another one when SIGHUP asks for it.
        policy: what is promised.
        batch: the largest batch.
        name: of the model, in paths.
        host: address to listen at.
        port: to listen at; 0 for any that is free.
        limits: of one request.
        keys: who may ask.
        connections: that may be open at once, idle ones too; more get a bare 503, without a word on when to come back.
        patience: seconds from being told to stop until whoever is in must be answered; letting the network go takes up
            to 10 more.

    Raises:
        OSError: the address is taken.
    """

    def __init__(
        self,
        load: Callable[[], Served],
        policy: Policy,
        *,
        batch: int = 16,
        name: str = "elastic",
        host: str = "127.0.0.1",
        port: int = 8000,
        limits: Limits | None = None,
        keys: Keys | None = None,
        connections: int = CONNECTIONS,
        patience: int = 30,
    ):
        self.load, self.metrics = load, Metrics()
        self.engine = Engine(load(), policy, batch=batch, watch=self.metrics)
        self.error: BaseException | None = None
        app = application(
            self.engine,
            name=name,
            limits=limits,
            keys=keys,
            metrics=self.metrics,
            patience=patience,
            failed=self._failed,
        )
        self.front = app.state.front
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            limit_concurrency=connections,
            h11_max_incomplete_event_size=_HEADERS,
            http=punctual(self.front.limits.seconds),
            timeout_graceful_shutdown=patience,
        )
        super().__init__(config)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self.socket = socket.create_server((host, port), family=family)
            # Answers are written in two pieces; the second would wait 40 ms for word of the first.
            # asyncio sees to that only on sockets that name their protocol, which these do not.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self.engine.drain(0)
            raise

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def serve_until_told(self) -> None:
        """Serve until SIGTERM or Ctrl-C; on SIGHUP load the network anew.

        Raises:
            ValueError: the engine could not start.
        """
        with quiet(), _handling(signal.SIGTERM, lambda: None), _handling(signal.SIGHUP, self.reload):
            self.run(sockets=[self.socket])
        if self.error is not None:
            raise self.error

    def reload(self) -> threading.Thread:
        """Load the network anew, and go on with it once it is warm; the old one serves until then, or if that fails."""
        thread = threading.Thread(target=self._reload, name="nestor-reload", daemon=True)
        thread.start()
        return thread

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, but answer first."""
        self.front.leave()
        super().handle_exit(sig, frame)

    def _reload(self) -> None:
        try:
            self.engine.reload(self.load())
        except Exception:
            _log.exception("the network could not be loaded; the old one serves on")
            self.metrics.failures.inc()
        else:
            _log.info("network loaded", extra={"facts": {"version": self.engine.version}})

    def _failed(self, error: BaseException) -> None:
        self.error, self.should_exit = error, True


@contextmanager
def _handling(number: int, call: Callable[[], object]) -> Iterator[None]:
    """Call something on a signal; Python delivers them to the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda *_: call() and None)
    try:
        yield
    finally:
        signal.signal(number, before)
