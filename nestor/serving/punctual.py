"""Connections that wait for a request, or for an answer to be read, for so long and no longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.server import ServerState


class Punctual(H11Protocol):
    """HTTP/1.1 that closes a connection on which no request has become complete for `seconds`.

    A connection takes one of a limited number of places, which nobody shall hold by sending a header now and then, or
    by not reading what it asked for. From its headers on a request is timed by whoever reads its body.
    """

    seconds = 10.0

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None):
        super().__init__(config, server_state, app_state, _loop)
        self._closing: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

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

    def pause_writing(self) -> None:
        """Somebody does not read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Somebody reads on."""
        super().resume_writing()
        self._unread = _stopped(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        """Somebody has gone."""
        super().connection_lost(exc)
        self._closing, self._unread = _stopped(self._closing), _stopped(self._unread)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._closing = _stopped(self._closing)
        elif self._closing is None:
            self._closing = self.loop.call_later(self.seconds, self._close)

    def _close(self) -> None:
        self.transport.close()
        # Closing waits until all is sent, which is up to who reads it.
        if self.transport.get_write_buffer_size():
            self._closing = self.loop.call_later(self.seconds, self.transport.abort)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def punctual(limit: float) -> type[Punctual]:
    """The protocol with a limit in seconds."""

    class Limited(Punctual):
        seconds = limit

    return Limited
