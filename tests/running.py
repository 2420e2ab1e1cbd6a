"""A server in a thread of the tests, and waiting that ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from test_serving_engine import WAIT

from nestor.serving.server import Server


@contextmanager
def running(server: Server) -> Iterator[threading.Thread]:
    """A server that is ready, until it is told to stop."""
    thread = threading.Thread(target=server.serve_until_told, daemon=True)
    thread.start()
    try:
        until(lambda: not thread.is_alive() or (server.started and server.engine.ready))
        assert thread.is_alive(), f"the server has ended: {server.error}"
        yield thread
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(WAIT)
    assert not thread.is_alive()


def until(so: Callable[[], bool]) -> None:
    """Wait until it is so."""
    waiting = threading.Event()
    for _ in range(100 * WAIT):
        if so():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come true")
