"""Pieces of work side by side: order, threads, errors."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from nestor.training.interrupt import Deferred
from nestor.training.parallel import side_by_side


def _told(base: int, item: int) -> tuple[int, int, int]:
    return base + item, torch.get_num_threads(), os.getpid()


def _broken(item: int) -> int:
    if item == 1:
        raise ValueError(f"item {item} cannot be done")
    return item


def _sleep(folder: Path, item: int) -> None:
    (folder / f"{item} {os.getpid()}").touch()
    time.sleep(3600)


def _train(folder: Path, item: int) -> None:
    with Deferred(print) as stop:
        (folder / f"{item} {os.getpid()}").touch()
        while not stop.asked:
            time.sleep(0.1)
    raise KeyboardInterrupt


def test_results_come_in_order_from_processes_of_one_thread():
    found = side_by_side(partial(_told, 10), range(4), processes=2)
    assert [value for value, _, _ in found] == [10, 11, 12, 13]
    assert {threads for _, threads, _ in found} == {1}
    assert os.getpid() not in {process for _, _, process in found}


def test_a_single_piece_or_process_stays_here():
    threads = torch.get_num_threads()
    assert side_by_side(partial(_told, 0), [5]) == [(5, threads, os.getpid())]
    assert side_by_side(partial(_told, 0), [1, 2], processes=1) == [
        (1, threads, os.getpid()),
        (2, threads, os.getpid()),
    ]
    assert side_by_side(partial(_told, 0), []) == []


def test_an_error_of_a_piece_is_the_error_of_all():
    with pytest.raises(ValueError, match="item 1 cannot be done"):
        side_by_side(_broken, range(4), processes=2)
    with pytest.raises(ValueError, match="processes must be at least 1; got 0"):
        side_by_side(_broken, range(4), processes=0)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("what", ["_sleep", "_train"])
def test_pieces_stop_when_nobody_waits_for_them(what: str, how: signal.Signals, tmp_path: Path):
    code = "import sys; from pathlib import Path; from functools import partial; import test_parallel as t; "
    code += "t.side_by_side(partial(getattr(t, sys.argv[1]), Path(sys.argv[2])), [0, 1], processes=2)"
    here = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", code, what, str(tmp_path)], env=os.environ | here)
    began = _until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.send_signal(how)
    parent.wait()
    assert began
    pieces = [int(file.name.split()[1]) for file in tmp_path.iterdir()]
    assert _until(lambda: not any(map(_runs, pieces)))


def _runs(process: int) -> bool:
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False).stdout
    # What has ended and was not asked for is a zombie.
    return bool(told.strip()) and not told.startswith("Z")


def _until(holds: Callable[[], bool]) -> bool:
    """Wait for what need not be quick on a busy machine."""
    for _ in range(1200):
        if holds():
            return True
        time.sleep(0.1)
    return False
