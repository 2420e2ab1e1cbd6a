"""What every test needs: fixed seeds, and imports that work beside a torch without CUDA."""

import os
import shutil
from importlib.util import find_spec

import pytest
import torch

from benchmarks.rivals import reach_rivals

# Before transformers asks whether there is a torchvision.
reach_rivals()

# The page is tried in a real browser where there is one; where there is none, the end of every run says so.
CHROMIUM = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), "")
LACKING = [
    *([] if CHROMIUM else ["chromium (apt install chromium)"]),
    *(f"{name} (pip install 'nestor[dev]')" for name in ("playwright", "gradio") if find_spec(name) is None),
]
collect_ignore = ["test_page_browser.py"] if LACKING else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LACKING:
        terminalreporter.write_line(f"NOT TESTED: the page in a browser, which needs {' and '.join(LACKING)}", red=True)


if "PYTEST_XDIST_WORKER" in os.environ:
    # As many workers as cores: a second thread of each would only be in the way. Processes that tests start inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """One thread: on networks this small a second one costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
