"""What every test needs: fixed seeds, and imports that work beside a torch without CUDA."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from garments import LACKING_GARMENTS
from hypothesis import HealthCheck, settings

from benchmarks.rivals import reach_rivals

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before transformers asks whether there is a torchvision.
reach_rivals()

# Pages are tried in a real browser where there is one; where there is none, the end of every run says so.
CHROMIUM = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), "")
LACKING = [
    *([] if CHROMIUM else ["chromium (apt install chromium)"]),
    *(f"{name} (pip install 'nestor[dev]')" for name in ("playwright", "gradio") if find_spec(name) is None),
]
collect_ignore = ["test_page_browser.py", "test_site.py"] if LACKING else []
# Its interpreter takes the place of a GPU; where there is one, it is the GPU that is tested.
LACKING_TRITON = [] if find_spec("triton") else ["triton (pip install 'nestor[dev]')"]
collect_ignore += ["test_fused.py"] if LACKING_TRITON else []
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, lacking in (
        ("pages in a browser", LACKING),
        ("real garments", LACKING_GARMENTS),
        ("kernels for GPUs", LACKING_TRITON),
    ):
        if lacking:
            terminalreporter.write_line(f"NOT TESTED: {what}, which needs {' and '.join(lacking)}", red=True)


if "PYTEST_XDIST_WORKER" in os.environ:
    # As many workers as cores: a second thread of each would only be in the way. Processes that tests start inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# What a test holds does not depend on how busy the machine is.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


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


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built once."""
    from documentation import built

    return built(tmp_path_factory.mktemp("site"))


# Not longer: a browser keeps an event loop running, beside which no other can be started.
@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In a container Chromium's own sandbox often cannot start.
        browser = playwright.chromium.launch(executable_path=shutil.which(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()
