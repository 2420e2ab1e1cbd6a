import re
from html.parser import HTMLParser

import pytest
import torch
from test_measure_draw import made
from tiny_vit import NARROWED, tiny

from nestor.measure import report as room
from nestor.measure.draw import curve, routings
from nestor.measure.report import Report, headlines, render, svg, write_report

VOID = {"meta", "br"}


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def example(**changes) -> Report:
    figure = routings(tiny(NARROWED), torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), (1.0, 0.7))
    fields = {
        "title": "Cells <b> & more",
        "summary": {"network": "a < b"},
        "profile": made(),
        "routings": (("Good cell", figure),),
        "notes": ("A note & another.",),
        "versions": {"nestor": "0"},
    }
    return Report(**fields | changes)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_the_page_is_well_formed_and_says_everything():
    reader = read(render(example()))
    assert reader.open == []
    text = " ".join(reader.text)
    for part in ("Cells <b> & more", "a < b", "Good cell", "A note & another.", "nestor", "rival", "0.9500"):
        assert part in text
    for heading in ("What was done", "In short", "Which patch got which width", "Latency", "Machine and versions"):
        assert heading in text


def test_the_page_needs_nothing_from_outside():
    page = render(example())
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in read(page).links)
    assert "@import" not in page
    assert "<script" not in page
    addresses = set(re.findall(r"https?://[^\"' <)]+", page))
    # Names of the drawing language, which nobody fetches.
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_what_is_not_there_is_not_spoken_of():
    page = render(example(routings=(), notes=(), profile=made(timed=False), versions=None))
    for heading in ("Which patch", "Latency", "Notes", "as fast as"):
        assert heading not in page


def test_headlines_by_hand():
    text = " ".join(read(headlines(made())).text)
    assert "0.9500" in text
    assert "at 50% of the dense network's MACs (dense: 1.0000)" in text
    assert "2.00x" in text
    assert "100% of the MACs suffice to stay within 0.01" in text


def test_figures_take_the_ink_and_the_ground_of_the_page():
    drawing = svg(curve(made()))
    assert drawing.startswith("<svg")
    assert "currentColor" in drawing
    assert "#000000" not in drawing
    assert "fill: #ffffff" not in drawing
    assert drawing == svg(curve(made()))


def test_the_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "runs" / "report.html"
    assert write_report(example(), out) == out
    before = out.read_text()
    assert before == before.rstrip() + "\n"
    assert before.endswith("</html>\n")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(room, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(example(title="Other"), out)
    assert out.read_text() == before
