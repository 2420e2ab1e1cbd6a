"""Connections that wait for a request for so long and no longer, however slowly it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.server import ServerState


class Punctual(H11Protocol):
    """HTTP/1.1 that closes a connection on which no request has become complete for `seconds`.

    A connection takes one of a limited number of places, which nobody shall hold by sending a header now and then. From
    its headers on a request is timed by whoever reads its body.
    """

    seconds = 10.0

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None):
        super().__init__(config, server_state, app_state, _loop)
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has come."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """More has come."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Somebody was answered, and may ask again."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Somebody has gone."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.seconds, self.transport.close)

    def _stop(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None


def punctual(limit: float) -> type[Punctual]:
    """The protocol with a limit in seconds."""

    class Limited(Punctual):
        seconds = limit

    return Limited
