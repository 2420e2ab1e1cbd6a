"""How many requests, and how many bytes of them, a server holds at once; the event loop's own, so without locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.serving.order import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds after which a place may be free again.
AGAIN = 1.0


class Room:
    """What is under way, from the first header to the last byte of the answer.

    Args:
        requests: that may be under way.
        size: bytes of their bodies.
        refused: told why somebody did not get in.
    """

    def __init__(self, *, requests: int, size: int, refused: Callable[[str], None]):
        self.requests, self.size, self._refused = requests, size, refused
        self.inside = self.held = 0

    def enter(self) -> Place:
        """Let a request in.

        Raises:
            RefusedError: too many are under way.
        """
        if self.inside >= self.requests:
            raise self.full(f"{self.requests} requests are under way")
        self.inside += 1
        return Place(self)

    def full(self, why: str) -> RefusedError:
        """What is told to who finds no place; it is counted."""
        self._refused("overloaded")
        return RefusedError("overloaded", f"too much traffic: {why}. Ask again in a moment.", after=AGAIN)


class Place:
    """What one request takes of the room."""

    def __init__(self, room: Room):
        self._room, self._held = room, 0

    def expect(self, size: int) -> None:
        """Look whether so many bytes would fit now.

        Raises:
            RefusedError: they would not.
        """
        if self._room.held + size > self._room.size:
            raise self._room.full(f"the bodies under way fill the {self._room.size:,} bytes that there are for them")

    def take(self, size: int) -> None:
        """Hold so many bytes more.

        Raises:
            RefusedError: there is no room for them.
        """
        self.expect(size)
        self._held += size
        self._room.held += size

    def leave(self) -> None:
        """Give back what was held, and the place itself."""
        self._room.held -= self._held
        self._room.inside -= 1
