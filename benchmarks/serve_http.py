"""One connection to a server, with no more of HTTP than a server of ours needs; a library would cost more."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HOST = "127.0.0.1"
# Seconds that an answer may take.
LONGEST = 60.0
# A server closes what was idle for some seconds, perhaps while a request is on its way; a connection that was in use
# just now and breaks is a loss.
IDLE = 1.0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server says: status, headers in small letters, body; and whether it took a second connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    retried: bool = False


class _UnansweredError(OSError):
    """A connection broke before the first byte of an answer."""


class Connection:
    """A connection that stays open from one request to the next."""

    def __init__(self, port: int):
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def ask(self, method: str, path: str, body: bytes = b"", more: Mapping[str, str] | None = None) -> Reply:
        """An answer, on another connection if this one was closed because it was idle.

        Raises:
            OSError: the connection broke, or an answer took more than a minute.
        """
        if self._streams is not None and self._streams[0].at_eof():
            self.close()
        idle = self._streams is not None and time.monotonic() - self._used >= IDLE
        fields = {"host": HOST, "content-length": str(len(body))} | dict(more or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        request = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body
        try:
            return await self._once(request)
        except _UnansweredError:
            if not idle:
                raise
        return replace(await self._once(request), retried=True)

    def close(self) -> None:
        """Leave; the next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _once(self, request: bytes) -> Reply:
        lines: list[str] = []
        try:
            async with asyncio.timeout(LONGEST):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(HOST, self.port)
                reader, writer = self._streams
                writer.write(request)
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
                fields = dict(line.split(": ", 1) for line in lines[1:] if line)
                content = await reader.readexactly(int(fields["content-length"]))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            begun = bool(lines) or bool(getattr(error, "partial", b""))
            silent = not begun and not isinstance(error, TimeoutError)
            raise (_UnansweredError if silent else OSError)(str(error)) from error
        self._used = time.monotonic()
        if fields.get("connection") == "close":
            self.close()
        return Reply(status=int(lines[0].split()[1]), headers=fields, body=content)


async def until(port: int, path: str, enough: Callable[[bytes], bool], seconds: float) -> None:
    """Ask until an answer is there that is enough.

    Raises:
        TimeoutError: there was none for so long.
    """
    try:
        async with asyncio.timeout(seconds):
            while not await _is_there(port, path, enough):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TimeoutError(f"port {port} did not answer {path} as it should within {seconds:g} s.") from None


def anything(_: bytes) -> bool:
    """Whatever is said."""
    return True


def empty(metrics: bytes) -> bool:
    """Whether nobody waits any more."""
    return b"nestor_queue_pictures 0.0" in metrics


async def _is_there(port: int, path: str, enough: Callable[[bytes], bool]) -> bool:
    connection = Connection(port)
    try:
        reply = await connection.ask("GET", path)
    except OSError:
        return False
    finally:
        connection.close()
    return reply.status == 200 and enough(reply.body)
