"""The documentation in the machine's own Chromium; conftest.py says when there is none."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import pytest
from documentation import ROOT
from playwright.sync_api import Browser, expect

# One process builds the site for this file and for test_docs.py.
pytestmark = pytest.mark.xdist_group("site")
WRITTEN = (path.relative_to(ROOT / "docs").with_suffix("") for path in sorted(ROOT.glob("docs/**/*.md")))
GENERATED = ("how-to/notebook", "systems", "systems/mone", "reference", "reference/commands", "reference/models")
PAGES = tuple("" if str(name) == "index" else f"{name}/" for name in (*WRITTEN, *GENERATED))
FAULTS = """() => {
  const scrolls = (part) => part && part !== document.body
    && (getComputedStyle(part).overflowX !== 'visible' || scrolls(part.parentElement));
  const name = (part) => (part.innerText || '').trim() || part.getAttribute('aria-label') || part.title
    || part.placeholder || [...(part.labels || [])].map((label) => label.textContent).join('');
  const shown = (part) => part.checkVisibility({visibilityProperty: true});
  const all = (what) => [...document.querySelectorAll(what)];
  return [
    ...all('body *').filter((part) => part.getBoundingClientRect().right > innerWidth + 1 && shown(part)
      && !scrolls(part.parentElement)).map((part) => `too wide: ${part.outerHTML}`),
    ...all('img').filter((part) => !part.alt).map((part) => `without words: ${part.outerHTML}`),
    ...all('img').filter((part) => !part.naturalWidth).map((part) => `not there: ${part.outerHTML}`),
    ...all('button, input, select').filter((part) => shown(part) && !name(part))
      .map((part) => `without a name: ${part.outerHTML}`),
  ].map((fault) => fault.slice(0, 200));
}"""


class Silent(SimpleHTTPRequestHandler):
    """Answers without telling the terminal."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "dark")])
def test_pages_fit_the_screen_name_everything_and_stay_here(
    browser: Browser, address: str, width: int, scheme: Literal["light", "dark"]
):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    faults = {}
    for path in PAGES:
        answer = page.goto(address + path)
        assert answer is not None
        assert answer.ok, path
        faults[path] = page.evaluate(FAULTS) + said
        said.clear()
    context.close()
    assert {path: found for path, found in faults.items() if found} == {}
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_the_dial_has_a_name_and_turns(browser: Browser, address: str):
    page = browser.new_page()
    page.goto(address)
    shown = page.locator(".dial figure[data-budget]:visible img")
    expect(shown).to_have_count(1)
    before = shown.get_attribute("src")
    dial = page.get_by_role("slider", name="model.budget")
    dial.press("ArrowRight")
    expect(shown).to_have_count(1)
    assert shown.get_attribute("src") != before
    page.close()


def test_a_phone_tears_no_option_apart(browser: Browser, address: str):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address + "start/")
    words = page.locator("pre .whole")
    assert "--out" in words.all_text_contents()
    lines = "parts => parts.map(part => part.getClientRects().length)"
    assert set(words.evaluate_all(lines)) == {1}
    # What is copied is what was written.
    assert "--data elpv --out elastic/ --size 112\n" in page.locator("pre > code").nth(1).inner_text() + "\n"
    page.close()
