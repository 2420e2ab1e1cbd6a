"""A small network in a process of its own, which dies, hangs or fails over certain pictures.

python serving_worker.py BUDGETS_FILE CHANNEL MOST
"""

import os
import signal
import sys
import threading
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from nets import small

from nestor.serving.network import Answers, ServedViT
from nestor.serving.worker import work

DIES, HANGS, FAILS = 1000.0, 2000.0, 3000.0


class Mortal(ServedViT):
    """Does what the first number of a batch says."""

    def run(self, items: torch.Tensor, budget: float) -> Answers:
        mark = float(items.flatten()[0])
        if mark == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        if mark == HANGS:
            threading.Event().wait()
        if mark == FAILS:
            raise MemoryError("no room for this batch")
        return super().run(items, budget)


def main(budgets: str, channel: str, most: str) -> None:
    file = Path(budgets)
    work(
        lambda: Mortal(small(labels=("cat", "dog", "newt")), [float(each) for each in file.read_text().split()]),
        channel=int(channel),
        most=int(most),
        stamp=lambda: str(file.stat().st_mtime_ns),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
