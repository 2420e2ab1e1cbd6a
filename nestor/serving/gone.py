"""Clients that close the connection before they are answered: nothing more is done for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from nestor.serving.guard import LEFT, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from starlette.requests import Request

_Result = TypeVar("_Result")


async def unless_gone(request: Request, future: Future[_Result], forget: Callable[[], None]) -> _Result:
    """Wait for what a client asked for, as long as it does.

    Args:
        request: whose body was read.
        future: gives the result.
        forget: is called when nobody waits any more.

    Raises:
        RequestError: the client has left.
    """
    waiting, left = asyncio.wrap_future(future), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((waiting, left), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise RequestError(LEFT, "the client left before it was answered.")
    finally:
        # Also where the server itself gives up waiting.
        if not waiting.done():
            forget()
        left.cancel()
        waiting.cancel()


async def _left(request: Request) -> None:
    # Its body was read, so that nothing else can come.
    while (await request.receive())["type"] != "http.disconnect":
        pass
