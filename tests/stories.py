"""Examples of the documentation: found in Markdown, and run as a reader would run them."""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nestor.cli import app
from nestor.serving.server import Server

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FILES = ("toml", "yaml", "json")
ADDRESS = "http://127.0.0.1:8000"
WAIT = 60


@dataclass(frozen=True, kw_only=True)
class Story:
    """Examples that belong together, in order: each a language and its text."""

    name: str
    blocks: tuple[tuple[str, str], ...]

    @property
    def makes_its_network(self) -> bool:
        """Whether `elastic/` is its own work."""
        return any(re.search(r"nestor nest .*--out elastic/|save\(.*elastic/", text) for _, text in self.blocks)


def stories() -> list[Story]:
    """Each page of the documentation; each part of the README, which begins anew."""
    pages = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.glob("docs/**/*.md"))}
    parts = (ROOT / "README.md").read_text().split("\n## ")
    pages |= {f"README.md, {part.splitlines()[0]}": part for part in parts}
    found = (Story(name=name, blocks=tuple(FENCE.findall(text))) for name, text in pages.items())
    return [story for story in found if story.blocks]


def tell(story: Story, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a story in the current folder; `values` are names that its Python may use."""
    with ExitStack() as stack:
        servers: list[Server] = []
        for language, text in story.blocks:
            if language == "python":
                exec(compile(text, story.name, "exec"), values)
                continue
            if language in FILES:
                write(text)
                continue
            assert language in ("bash", "console"), f"{story.name}: no language, so nobody can run {text!r}"
            for line in filter(None, map(shlex_split, text.splitlines())):
                if line[:2] == ["nestor", "serve"]:
                    servers.append(stack.enter_context(serving(line[2:], monkeypatch)))
                elif line[:2] == ["nestor", "demo"]:
                    show(line[1:])
                elif line[0] == "curl":
                    ask(line, servers[-1])
                else:
                    command(line)


def write(text: str) -> None:
    """A file, which its first line names."""
    name = re.fullmatch(r"# (\S+)", text.partition("\n")[0])
    assert name, f"a file says in its first line what it is called; got {text!r}"
    Path(name[1]).write_text(text)


def shlex_split(line: str) -> list[str]:
    return [word for word in shlex.split(line, comments=True) if word != "&"]


def command(line: list[str]) -> None:
    """Run a command of ours; of others, see that what they name is there."""
    if "nestor.cli" in line:
        line = ["nestor", *line[line.index("nestor.cli") + 1 :]]
    if line[0] == "nestor":
        result = CliRunner().invoke(app, line[1:])
        assert result.exit_code == 0, f"{shlex.join(line)}: {result.output}"
    elif line[0] == "make":
        assert re.search(rf"^{line[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif line[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\w+", line[2])) - {"nestor"} <= extras.keys()
    else:
        assert line == ["source", ".venv/bin/activate"]


def show(words: list[str]) -> None:
    """`nestor demo` with these words, at any free port, in a process of its own until its page was seen."""
    page = subprocess.Popen(
        [sys.executable, "-m", "nestor.cli", *words, "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with page:
        try:
            assert page.stdout is not None
            with urllib.request.urlopen(page.stdout.readline().split()[0], timeout=WAIT) as answer:
                assert b"<html" in answer.read()
            page.terminate()
            assert page.wait(WAIT) == 0
        finally:
            page.kill()


@contextmanager
def serving(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """`nestor serve` with these words, at any free port."""
    started: list[Server] = []
    until_told = Server.serve_until_told

    def noted(server: Server) -> None:
        started.append(server)
        until_told(server)

    monkeypatch.setattr(Server, "serve_until_told", noted)
    monkeypatch.setattr("nestor.serving.lines.log_lines", lambda: None)
    call = {"args": ["serve", *words, "--port", "0"], "standalone_mode": False}
    thread = threading.Thread(target=app, kwargs=call, daemon=True)
    thread.start()
    until = time.monotonic() + WAIT
    while not (started and started[0].engine.ready and started[0].started):
        assert thread.is_alive(), "the server has ended"
        assert time.monotonic() < until
        threading.Event().wait(0.01)
    try:
        yield started[0]
    finally:
        started[0].should_exit = True
        thread.join(WAIT)


def ask(line: list[str], server: Server) -> None:
    """What curl would ask, which not every machine has; an answer below 400 is one."""
    *options, address = line[1:]
    assert address.startswith(ADDRESS)
    body = None
    if options:
        assert options[0] == "--data-binary"
        body = Path(options[1].removeprefix("@")).read_bytes()
    request = urllib.request.Request(address.replace(ADDRESS, server.address), body)
    # urllib alone would call the bytes a form; curl does so too, and the server looks at the bytes.
    with urllib.request.urlopen(request, timeout=WAIT) as answer:
        assert answer.read()
