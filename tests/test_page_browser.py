"""The page of `nestor demo` as a process, in the machine's own Chromium; conftest.py says when there is none."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from tiny_vit import NARROWED, tiny

import nestor

ROOT = Path(__file__).parent.parent
PATIENCE = 60_000


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    nestor.save(tiny(NARROWED, classes=2, labels=("blue", "red")), folder / "elastic")
    rng = np.random.default_rng(0)
    for label in ("red", "blue"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{label}{number}.png")
    Image.new("RGB", (50, 40), "teal").save(folder / "own.png")
    Image.new("1", (10_000, 9_000)).save(folder / "huge.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "temp").mkdir()
    return folder


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """Where `nestor demo` shows the page; when it is told to end, it does, and leaves nothing behind."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(home / "temp")}
    command = [sys.executable, "-m", "nestor.cli", "demo", str(home / "elastic"), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data", str(home / "photos")],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"\S+", line)
    try:
        assert found, process.stderr and process.stderr.read()
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert not list((home / "temp").glob("nestor-page-*"))
    assert "Traceback" not in said


class Watched:
    """A page whose errors and requests are kept."""

    def __init__(self, page: Page, address: str):
        self.page, self.address = page, address
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(address)
        expect(page.locator(".nst-routing")).to_be_visible(timeout=PATIENCE)

    @property
    def slider(self) -> Locator:
        return self.page.get_by_label("range slider for Budget")

    @property
    def routing(self) -> str | None:
        return self.page.locator(".nst-routing").get_attribute("src")

    def settled(self) -> str:
        """What the page says once the times of the slider's position are measured."""
        budget = f"Budget {float(self.slider.input_value()):.2f}"
        expect(self.page.locator("#nst-verdict thead")).to_contain_text(budget, timeout=PATIENCE)
        expect(self.page.locator("#nst-verdict .nst-note")).to_contain_text("median of", timeout=PATIENCE)
        expect(self.page.locator("#nst-chart .nst-note")).to_contain_text("Cosine", timeout=PATIENCE)
        expect(self.page.locator("#nst-verdict thead")).to_contain_text(budget)
        return self.page.locator("#nst-verdict tbody").inner_text()


@pytest.fixture
def watched(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Watched]:
    options: Any = {"viewport": {"width": 1400, "height": 1000}} | getattr(request, "param", {})
    context = browser.new_context(**options)
    watched = Watched(context.new_page(), address)
    yield watched
    context.close()
    assert not watched.errors
    assert [url for url in watched.asked if not url.startswith((watched.address, "data:", "blob:"))] == []


def test_browsers_are_told_to_stay_with_this_host(address: str):
    with urllib.request.urlopen(address, timeout=20) as answer:
        policy, text = answer.headers["content-security-policy"], answer.read().decode()
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    assert "elastic at any budget" in text
    assert '"analytics_enabled":false' in text.replace(" ", "")


@pytest.mark.parametrize(
    "watched",
    [
        {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
        for width in (390, 1400)
        for scheme in ("light", "dark")
    ],
    indirect=True,
    ids=str,
)
def test_it_fits_every_screen_in_light_and_dark(watched: Watched, request: pytest.FixtureRequest):
    page, asked = watched.page, request.node.callspec.params["watched"]
    watched.settled()
    wide = page.evaluate("Math.max(...[...document.querySelectorAll('main *')].map(e => e.closest('.nst-samples')"
                         " || e.closest('.nst-aloud') ? 0 : e.getBoundingClientRect().right))")  # fmt: skip
    assert wide <= asked["viewport"]["width"]
    left, right = page.evaluate(
        "(({left, right}) => [left, right])(document.querySelector('main').getBoundingClientRect())"
    )
    assert left == pytest.approx(asked["viewport"]["width"] - right, abs=1)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", ground)[:3])) / 765
    assert bright < 0.2 if asked["color_scheme"] == "dark" else bright > 0.8
    nameless = "[...document.querySelectorAll('img:not([alt]), svg[role=img]:not([aria-label])')].length"
    assert page.evaluate(nameless) == 0


def test_arrows_and_dragging_change_routing_and_numbers(watched: Watched):
    first, routing = watched.settled(), watched.routing
    watched.slider.focus()
    for _ in range(20):
        watched.slider.press("ArrowRight")
    assert watched.slider.input_value() == "0.7"
    second = watched.settled()
    assert second != first
    assert watched.routing != routing
    routing, box = watched.routing, watched.slider.bounding_box()
    assert box is not None
    middle, mouse = box["y"] + box["height"] / 2, watched.page.mouse
    mouse.move(box["x"] + 0.5 * box["width"], middle)
    mouse.down()
    for step in range(20):
        mouse.move(box["x"] + (0.5 - 0.02 * step) * box["width"], middle)
    mouse.up()
    assert float(watched.slider.input_value()) < 0.5
    assert watched.settled() != second
    assert watched.routing != routing


def test_samples_are_chosen_with_the_keyboard(watched: Watched):
    watched.settled()
    before = watched.page.locator(".nst-stage figcaption").first.inner_text()
    sample = watched.page.get_by_role("button", name="Sample 3")
    sample.focus()
    watched.page.keyboard.press("Enter")
    expect(watched.page.locator(".nst-stage figcaption").first).not_to_have_text(before)
    expect(sample).to_have_attribute("aria-pressed", "true")
    expect(sample).to_be_focused()
    watched.settled()


def test_pictures_that_cannot_be_shown_are_explained(watched: Watched, home: Path):
    page, alert = watched.page, watched.page.get_by_role("alert")
    watched.settled()
    before = watched.routing
    for name, why in (("broken.png", "not a picture in a format"), ("huge.png", "this one is 10000 x 9000")):
        page.set_input_files("#nst-own input[type=file]", home / name)
        expect(alert).to_contain_text(f"{name} cannot be shown: ", timeout=PATIENCE)
        expect(alert).to_contain_text(why)
        assert watched.routing == before
        page.locator("#nst-own").get_by_label("Clear").click()
    page.set_input_files("#nst-own input[type=file]", home / "own.png")
    expect(page.locator(".nst-stage figcaption").first).to_have_text("own.png", timeout=PATIENCE)
    expect(alert).to_have_count(0)
    expect(page.locator('.nst-sample[aria-pressed="true"]')).to_have_count(0)
    watched.settled()
