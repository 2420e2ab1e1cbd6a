"""Ctrl-C between steps instead of within them."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

# Launchers and clusters ask with SIGTERM, and torchrun passes Ctrl-C on as both.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Deferred:
    """Lets Ctrl-C wait for the end of a step, for a half-made update cannot be kept; the same again does not wait.

    Args:
        say: shows a line.
    """

    def __init__(self, say: Callable[[str], None]):
        self.asked, self.say = False, say
        self.before = {}

    def __enter__(self) -> Deferred:
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            self.before = {each: signal.signal(each, self._note) or signal.SIG_DFL for each in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, before in self.before.items():
            signal.signal(each, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, self.before[signal.Signals(number)])
        if not self.asked:
            self.say("stopping after this step; Ctrl-C again stops at once")
        self.asked = True
