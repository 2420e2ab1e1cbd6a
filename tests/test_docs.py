"""The documentation: it builds without a warning, leaves out nothing public, and shows what was measured."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import documentation
import pytest
from documentation import ROOT

import nestor
from benchmarks.floor import Matmul, Rates
from benchmarks.record import Candidate, Report, judge
from benchmarks.settings import Cell
from docs.hooks import facts, pictures, reference, serving, systems
from nestor.measure.clock import Timing
from nestor.recipes.catalogue import systems as published
from nestor.recipes.evidence import names, sources

# One process builds the site for this file and for test_site.py.
pytestmark = pytest.mark.xdist_group("site")


@pytest.fixture
def small() -> Iterator[None]:
    """A tiny network in the pictures."""
    with documentation.small():
        yield


class Page(HTMLParser):
    """What a page loads, and which pictures have no words."""

    def __init__(self, path: Path):
        super().__init__()
        self.loaded: list[str] = []
        self.silent: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(found.get("src") or "")
        if tag == "link" and found.get("rel") != "canonical":
            self.loaded.append(found.get("href") or "")
        if tag == "img" and not found.get("alt"):
            self.silent.append(str(found))


def test_pages_load_nothing_from_elsewhere_and_describe_their_pictures(site: Path):
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) > 40
    for path in pages:
        page = Page(path)
        assert not [each for each in page.loaded if re.match(r"(?:https?:)?//", each)], path
        assert not page.silent, path
        # The theme would fetch a program to draw these.
        assert 'class="mermaid"' not in page.text
        assert "{{" not in page.text
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", path.read_text(encoding="utf-8")), path
    assert not list(site.rglob("*.py"))


def test_the_reference_leaves_out_nothing_public(site: Path):
    head, _, packed = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert head.startswith(b"# Sphinx inventory version 2")
    described = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    wanted = {f"nestor.{name}" for name in nestor.__all__ if name != "data"}
    wanted |= {f"{module}.{name}" for module, inside in reference.modules().items() for name in inside}
    assert len(wanted) > 500
    assert not wanted - described
    commands = (site / "reference" / "commands" / "index.html").read_text()
    assert all(f'id="nestor-{name}"' in commands for name in ("nest", "fit", "serve", "doctor"))


def test_every_system_has_its_row_and_every_recipe_its_page(site: Path):
    table = (site / "systems" / "index.html").read_text()
    assert all(f"arxiv.org/abs/{each.arxiv}" in table for each in published())
    for name in names():
        page = (site / "systems" / name / "index.html").read_text()
        assert f"nestor prove {name}" in re.sub(r"<[^>]*>", "", page)
        assert f'href="{name}/"' in table


def test_the_dial_has_a_picture_for_each_budget(site: Path):
    page = Page(site / "index.html")
    shown = [each for each in page.loaded if each.startswith("pictures/budget-")]
    assert len(shown) > 2
    assert all((site / each).read_bytes().startswith(b"\x89PNG") for each in shown)


def evidence(folder: Path, name: str, *holds: bool, made_with: str = "old") -> None:
    claims = [
        {"text": f"claim {i}", "left": 0.25, "relation": "<=", "right": 0.125 + each, "exact": False, "holds": each}
        for i, each in enumerate(holds)
    ]
    told = {"recipe": name, "claims": claims, "sources": made_with, "seconds": 120, "date": "2026-01-02"}
    told["machine"] = {"processor": "abacus", "threads": "2", "torch": "3"}
    (folder / f"{name}.json").write_text(json.dumps(told))


def test_claims_are_shown_as_they_were_found(tmp_path: Path):
    evidence(tmp_path, "mone", True, False)
    (tmp_path / "mone.png").write_bytes(b"drawn")
    page = systems.pages(tmp_path)["systems/mone.md"]
    assert "1 of 2 hold." in page
    assert "| claim 0 | 0.25 | ≤ | 1.125 | yes |" in page
    assert "| claim 1 | 0.25 | ≤ | 0.125 | **no** |" in page
    assert "It took 2 minutes on 2026-01-02 with 2 threads of abacus" in page
    assert "earlier sources" in page
    assert "(mone.png)" in page
    assert systems.figures(tmp_path) == {"systems/mone.png": b"drawn"}
    assert "No full proof was run yet" in systems.pages(tmp_path)["systems/emoe.md"]
    assert "| MoNE | ◐ partly | 1 of 2 | of earlier sources |" in systems.pages(tmp_path)["systems/index.md"]


def test_evidence_of_the_sources_as_they_are_is_current(tmp_path: Path):
    evidence(tmp_path, "emoe", True, made_with=sources("emoe"))
    found = systems.pages(tmp_path)
    assert "the sources as they are" in found["systems/emoe.md"]
    assert "| EMoE | ● works | 1 of 1 | current |" in found["systems/index.md"]


def test_speed_is_that_of_the_latest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(facts, "HISTORY", tmp_path)
    assert "No run is kept yet" in facts.speed()
    cell = Cell(subject="ViT-S/16", precision="float32")
    rates = Rates(matmuls=(Matmul(precision="float32", rows=16, inputs=16, outputs=16, gflops=1.0),), memory=1e9)
    dense = Candidate(name="dense", kind="dense", budget=1.0, macs=1000, weights=10)
    half = replace(dense, name="nested", kind="nested", budget=0.5, macs=500)
    told = {dense: 8.0, half: 5.0}
    timings = {one: Timing(median_ms=ms, low_ms=ms, high_ms=ms, rounds=3) for one, ms in told.items()}
    for date in ("2026-01-01T00:00", "2026-01-02T00:00"):
        report = Report(
            date=date,
            sources="0" * 64,
            seconds=1.0,
            settings={},
            machine={"processor": "abacus", "threads": "2"},
            versions={},
            rates=rates,
            rows=judge(cell, timings, rates),
        )
        (tmp_path / report.place).mkdir(exist_ok=True)
        (tmp_path / report.place / f"{report.name}.json").write_text(report.to_json())
    assert "2026-01-01" not in facts.speed()
    assert "abacus, 2 threads, 2026-01-02" in facts.speed()
    assert "| nested | 0.5 | 0.50 | 1.60 | 0.80 |" in facts.speed()


def test_load_tests_are_shown_with_what_fell_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving, "HISTORY", tmp_path)
    assert "No load test is kept yet" in serving.under_load()
    assert not serving.figures()
    step = {"factor": 3.0, "p95_ms": 75.4, "kept": 0.981, "budget": 0.25, "accuracy_offered": 0.8125}
    step |= {"refused": 5, "offered": 400, "lost": 0, "errors": 1}
    found = {
        "target_ms": 80.0,
        "precision": "float32",
        "size": 112,
        "machine": {"processor": "abacus", "threads": "2"},
        "capacity": {"full": 31.4},
        "steps": [{"system": "elastic"} | step, {"system": "fixed 1"} | step | {"budget": 1.0}],
        "claims": {"nobody is lost": True, "nobody is refused": False, "it is fair": None},
    }
    place = tmp_path / "abacus-2-threads" / "serving"
    place.mkdir(parents=True)
    (place / "serve_load.json").write_text(json.dumps(found))
    (place / "serve_load.png").write_bytes(b"drawn")
    told = serving.under_load()
    assert "| 3 | 75 | 98.1% | 0.25 | 0.812 | 5 of 400 | 1 |" in told
    assert "| 1.00 |" not in told
    assert "Of 3 claims 1 hold. These do not: nobody is refused. Nothing can be said of these: it is fair." in told
    [(figure, content)] = serving.figures().items()
    assert (f"(../{figure})" in told, content) == (True, b"drawn")


def test_an_unknown_fact_is_refused():
    with pytest.raises(ValueError, match=r"a fact must be one of dial, .*; got 'weather'"):
        facts.fact("weather")


@pytest.mark.usefixtures("small")
def test_no_order_of_channels_holds_more_than_principal_components():
    own, ordered, best = pictures.energies().values()
    assert [own[-1], best[-1]] == pytest.approx([1, 1])
    for a, b, c in zip(own, ordered, best, strict=True):
        assert a <= b + 1e-9
        assert b <= c + 1e-9


def test_no_page_says_a_measured_number_by_hand():
    for path in ROOT.glob("docs/**/*.md"):
        prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
        assert not re.findall(r"\d%|\d ?(?:ms|×|x\b)|\b0\.\d{2,}", prose), path
