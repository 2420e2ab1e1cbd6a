"""The process behind `nestor serve` that runs the network; started by it, and of no use to anybody else."""

from __future__ import annotations

import json
import logging
import sys


def main(settings: str, channel: str, most: str) -> None:
    """Run the network of a folder for a server.

    Args:
        settings: JSON with `folder`, `budgets`, `size` and `precision`.
        channel: descriptor of the server's socket.
        most: rows of the largest batch.
    """
    import nestor
    from nestor.serving.lines import log_lines
    from nestor.serving.open import open_served, stamp
    from nestor.serving.worker import work

    log_lines()
    asked = json.loads(settings)
    try:
        work(
            lambda: open_served(**asked, load=nestor.load),
            channel=int(channel),
            most=int(most),
            stamp=lambda: stamp(asked["folder"]),
        )
    except Exception:
        logging.getLogger("nestor.serving").exception("the network's process failed")
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
