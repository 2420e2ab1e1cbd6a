"""The page of `nestor demo` without a browser: what it computes, says and draws."""

import base64
import copy
import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_measure_draw import made
from tiny_pictures import paint
from tiny_vit import DENSE, NARROWED, SKIPPING, tiny
from typer.testing import CliRunner

import nestor
from nestor.api import prepare
from nestor.cli import app
from nestor.measure.cost import parameters
from nestor.measure.draw import choices, palette
from nestor.models.vit import ViT
from nestor.page import samples, words
from nestor.page.chart import Curve, draw, measured
from nestor.page.explore import RUNGS, TURNS, Explorer
from nestor.page.paint import address, swatches, tinted
from nestor.page.samples import Sample
from nestor.page.view import Parts, View, Visitor

STYLE = Path(words.__file__).with_name("page.css")


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def headed(nest=NARROWED) -> ViT:
    return tiny(nest, classes=3, labels=("red", "blue", "<b>"))


@pytest.fixture
def explorer() -> Explorer:
    return Explorer(headed())


@pytest.mark.parametrize("nest", [NARROWED, SKIPPING])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_look_is_what_the_network_gives(nest, classes: int):
    model = tiny(nest, classes=classes)
    explorer = Explorer(model)
    seen = explorer.open(picture(), "one")
    look = explorer.look(explorer.full(seen), 0.7)
    assert torch.equal(look.index.flatten(), choices(model, seen.pixels, 0.7))
    assert look.plan == model.plan(16, 0.7) == tuple(torch.bincount(look.index.flatten(), minlength=nest.experts))
    assert look.ratio == model.macs(look.plan) / model.full_macs(16) <= 0.7
    image = prepare.normalised(model, prepare.pixels(picture(), 16))
    with torch.no_grad():
        own, full = model(image, 0.7), model(image, 1.0)
    wanted = torch.cosine_similarity(own.tokens[0, 0], full.tokens[0, 0], dim=0)
    assert look.likeness == pytest.approx(wanted.item(), abs=1e-6)
    if own.logits is None or full.logits is None:
        assert look.chances is look.full_chances is None
    else:
        torch.testing.assert_close(look.chances, own.logits.softmax(-1)[0])
        torch.testing.assert_close(look.full_chances, full.logits.softmax(-1)[0])


def test_at_full_budget_it_is_the_full_network(explorer: Explorer):
    look = explorer.look(explorer.full(explorer.open(picture(), "one")), 1.0)
    assert look.ratio == 1
    assert look.likeness == pytest.approx(1)
    assert "this is the full network" in words.headline(look, explorer.labels)


def test_times_are_medians_of_turns(explorer: Explorer):
    full = explorer.full(explorer.open(picture(), "one"))
    plan = explorer.model.plan(16, 0.6)
    assert explorer.clock(plan) is None
    turns = [explorer.turn(full, plan) for _ in range(3)]
    assert [clock.turns for clock in turns] == [1, 2, 3]
    assert min(turns[-1].ms, turns[-1].full_ms) > 0
    explorer._turns[plan].extend([(0.5, 2.0)] * 9)
    clock = explorer.clock(plan)
    assert clock is not None
    assert (clock.ms, clock.full_ms) == (500, 2000)


def test_dense_networks_are_refused():
    with pytest.raises(ValueError, match="needs an elastic network"):
        Explorer(tiny(DENSE))
    with pytest.raises(ValueError, match="multiple of the patch"):
        Explorer(headed(), 18)


def test_colours_are_those_of_the_drawings():
    shown = torch.full((3, 8, 8), 90, dtype=torch.uint8)
    drawn = tinted(shown, torch.tensor([[0, 1], [2, 1]]), 3)
    expected = 45 + 127.5 * np.asarray(palette(3))
    np.testing.assert_allclose(drawn[::4, ::4], expected[[[0, 1], [2, 1]]], atol=0.51)
    np.testing.assert_allclose(drawn[3::4, 3::4], drawn[::4, ::4])
    assert len(set(swatches(4))) == 4
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in swatches(4))
    kind, held = address(shown).split(",")
    assert kind == "data:image/jpeg;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(held))))
    assert decoded.shape == (8, 8, 3)
    assert np.abs(decoded.astype(int) - 90).max() <= 2


CURVE = Curve(title="T", measure="m", points=((0.2, 0.5), (0.6, 0.7), (1.0, 0.8)), full=0.9, name="dense", note="n")


@pytest.mark.parametrize(
    ("ratio", "value"), [(0.2, 0.5), (0.4, 0.6), (0.8, 0.75), (1.0, 0.8), (0.1, None), (1.01, None)]
)
def test_between_points_the_curve_is_straight(ratio: float, value: float | None):
    assert CURVE.at(ratio) == (value if value is None else pytest.approx(value))


def test_the_present_point_lies_on_the_curve():
    drawn = draw(CURVE, 0.6, 0.7)
    (now,) = re.findall(r'class="nst-here" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    marks = re.findall(r'class="nst-mark" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert len(marks) == 3
    assert marks[1] == now
    assert float(marks[0][1]) > float(marks[1][1]) > float(marks[2][1]), "better is higher"
    assert "m 0.700 at 60% of the work; dense 0.900" in drawn
    assert "<progress" not in drawn
    assert "nst-here" not in draw(CURVE, 0.1, None)
    assert "point 4 of 9 <progress" in draw(CURVE, 0.6, 0.7, rungs=9)


def test_no_axis_goes_beyond_what_there_can_be():
    flat = replace(CURVE, points=((0.2, 1.0), (1.0, 1.0)), full=1.0)
    shown = [float(each) for each in re.findall(r">([\d.]+)</text>", draw(flat, 0.6, 1.0))]
    assert max(shown) == 1
    assert len(shown) >= 3


def test_a_profile_must_be_of_this_network():
    curve = measured(made(), parameters=10, size=16)
    assert curve.points == ((0.5, 0.95), (1, 1.0))
    assert (curve.full, curve.measure, curve.name) == (1.0, "class token cosine", "dense network")
    assert "3 pictures" in curve.note
    with pytest.raises(ValueError, match="11 parameters at 16 px; got one of 10 at 16 px"):
        measured(made(), parameters=11, size=16)
    with pytest.raises(ValueError, match="10 parameters at 32 px"):
        measured(made(), parameters=10, size=32)


def test_what_comes_from_outside_is_escaped(explorer: Explorer):
    bad = '<img src=x onerror="alert(1)">'
    visitor = Visitor()
    parts = View(explorer, [Sample(item=picture(), name=bad, label=bad)]).choose(visitor, 0, 0.7)
    said = "".join((*parts, words.notice(bad), words.heading(explorer, bad)))
    said += View(explorer, [Sample(item=picture(), name=bad)]).choices(0)
    assert "<img src=x" not in said
    assert "onerror=&quot;" in said
    assert "<b></" not in parts.verdict
    assert "&lt;b&gt;" in parts.verdict


def test_the_answers_of_both_stand_side_by_side(explorer: Explorer):
    full = torch.tensor([0.7, 0.2, 0.1])
    look = explorer.look(explorer.full(explorer.open(picture(), "one")), 0.6)
    same = replace(look, full_chances=full, chances=torch.tensor([0.6, 0.3, 0.1]))
    other = replace(look, full_chances=full, chances=torch.tensor([0.1, 0.2, 0.7]))
    assert "Same answer" in words.headline(same, explorer.labels)
    assert "Another answer</span>, &lt;b&gt;," in words.headline(other, explorer.labels)
    clock: Any = SimpleNamespace(ms=20.0, full_ms=50.0, turns=TURNS)
    said = words.verdict(same, clock, explorer.labels)
    for fact in ("70.0% sure", "60.0% sure", "20.0 ms", "50.0 ms", "2.50× as fast", f"{look.ratio:.1%}", "Budget 0.60"):
        assert fact in said
    assert "median of 7 turns" in said
    assert "turn 1 of 7" in words.verdict(same, None, explorer.labels)


def test_everything_is_told_step_by_step(explorer: Explorer):
    view, visitor = View(explorer, [Sample(item=picture(), name="one")]), Visitor()
    assert view.look(visitor, 0.5) == Parts()
    assert list(view.refine(visitor)) == []
    first = view.choose(visitor, 0, 0.7)
    assert "point 1 of 9" in first.chart
    steps = list(view.refine(visitor))
    assert len(steps) == 1 + RUNGS + TURNS
    assert [f"point {n + 1} of" in step.chart for n, step in enumerate(steps[:RUNGS])] == [True] * RUNGS
    assert "median of 7 turns" in steps[-1].verdict
    assert "nst-line" in steps[-1].chart
    # What was measured once is there at once.
    assert view.look(visitor, 0.7) == steps[-1]
    assert len(list(view.refine(visitor))) == 1
    assert view.look(visitor, 0.01).stage == view.look(visitor, explorer.least).stage


def test_long_work_ends_when_the_visitor_moves_on(explorer: Explorer):
    view, visitor = View(explorer, [Sample(item=picture(), name="one")]), Visitor()
    view.choose(visitor, 0, 0.7)
    old = view.refine(visitor)
    for _ in range(2):
        next(old)
    moved = view.look(visitor, 0.9)
    assert list(old) == []
    assert next(view.refine(visitor)).verdict == moved.verdict


def test_with_a_profile_its_curve_is_shown_and_nothing_is_measured_for_it(explorer: Explorer):
    view, visitor = View(explorer, [Sample(item=picture(), name="one")], CURVE), Visitor()
    parts = view.choose(visitor, 0, 0.7)
    assert visitor.scene is not None
    assert f"now: {CURVE.at(visitor.scene.look.ratio):.3f}" in parts.chart
    assert len(list(view.refine(visitor))) == 1 + TURNS


def test_what_cannot_be_read_leaves_the_picture_before(explorer: Explorer, tmp_path: Path):
    view, visitor = View(explorer, [Sample(item=picture(), name="one"), Sample(item=b"", name="none")]), Visitor()
    assert [sample.name for sample in view.samples] == ["one"]
    view.choose(visitor, 0, 0.7)
    before = visitor.scene
    (tmp_path / "broken.png").write_bytes(b"no picture")
    head = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(head, "PNG")
    (tmp_path / "huge.png").write_bytes(head.getvalue())
    for name, why in (
        ("broken.png", "not a picture in a format that is read here. Try a JPEG"),
        ("huge.png", "pictures may have 1 to 64,000,000 pixels; this one is 10000 x 9000. Try a JPEG"),
        ("none.png", "no such picture"),
    ):
        said = view.open(visitor, tmp_path / name, name, 0.7)
        assert isinstance(said, str)
        assert said.startswith(f"{name} cannot be shown: ")
        assert why in said
    assert visitor.scene is before
    picture(1).save(tmp_path / "fine.png")
    shown = view.open(visitor, tmp_path / "fine.png", "fine.png", 0.7)
    assert isinstance(shown, Parts)
    assert "fine.png" in shown.stage


def test_each_visitor_begins_anew(explorer: Explorer):
    visitor = Visitor()
    View(explorer, [Sample(item=picture(), name="one")]).choose(visitor, 0, 0.7)
    assert copy.deepcopy(visitor).scene is None


def test_samples_are_held_out_pictures_of_every_class(tmp_path: Path):
    for name, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        paint(tmp_path / "train" / name, colour, 3)
        paint(tmp_path / "val" / name, colour, 9)
    found = samples.from_data(str(tmp_path), headed(), 16)
    assert len(found) == samples.COUNT
    assert {sample.label for sample in found} == {"red", "blue"}
    assert all("val" in str(sample.item) for sample in found)


def test_samples_come_from_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from nestor.data.listing import Listing

    def missing() -> Listing:
        raise FileNotFoundError

    def listing(*names: str) -> Listing:
        labels = tuple(names[number % len(names)] for number in range(40)) if names else ()
        items = tuple(picture(number) for number in range(40))
        return Listing(items=items, names=tuple(map(str, range(40))), labels=labels, classes=names or None)

    monkeypatch.setattr(samples, "_photographs", listing)
    monkeypatch.setattr(samples, "elpv", lambda: listing("good", "bad"))
    monkeypatch.setattr(samples, "_clothes", missing)
    assert [sample.label for sample in samples.bundled()] == [None] * samples.COUNT
    assert [sample.label for sample in samples.bundled(("bad", "good"))] == ["good", "bad"] * 4
    assert [sample.label for sample in samples.bundled(("cat", "dog"))] == [None] * samples.COUNT
    monkeypatch.setattr(samples, "_photographs", missing)
    monkeypatch.setattr(samples, "elpv", missing)
    assert 0 < len(samples.bundled()) < samples.COUNT


def test_words_and_lines_stand_out_from_their_ground():
    text = STYLE.read_text()
    light, dark = (dict(re.findall(r"--nst-(\w+): (#\w{6})", block)) for block in text.split(".dark")[:2])
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for ground in ("card", "ground"):
            for name in ("ink", "soft", "own", "good", "odd", "bad"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
            assert contrast(colours["whole"], colours[ground]) >= 3


def contrast(one: str, other: str) -> float:
    """Between 1 and 21, as in WCAG 2.2."""

    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{home}/none",), "which is nothing here"),
        (("{home}/dense",), "routing needs an elastic network"),
        (("{home}/elastic", "--data", "{home}/none"), "there is no file or folder"),
        (("{home}/elastic", "--profile", "{home}/none.json"), "must be what nestor profile --out wrote; No such file"),
        (("{home}/elastic", "--profile", "{home}/elastic/config.json"), "not a profile that can be read"),
        (("{home}/elastic", "--size", "18"), "multiple of the patch"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str):
    nestor.save(headed(), tmp_path / "elastic")
    nestor.save(tiny(DENSE), tmp_path / "dense")
    result = CliRunner().invoke(app, ["demo", *(word.format(home=tmp_path) for word in arguments)])
    assert result.exit_code == 2, result.output
    assert message in result.stderr.replace("\n", " ")


def test_a_profile_in_the_folder_sets_size_and_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = headed()
    nestor.save(model, tmp_path / "elastic")
    record = made()
    record = replace(record, networks=(replace(record.networks[0], parameters=parameters(model)),), size=24)
    (tmp_path / "elastic" / "profile.json").write_text(record.to_json())
    paint(tmp_path / "photos" / "red", (200, 60, 60), 4)
    paint(tmp_path / "photos" / "blue", (60, 60, 200), 4)
    made_with: list[Any] = []

    class Server:
        address = "an address"

        def __init__(self, view: View, name: str, **more: Any):
            made_with.extend((view, name, more))

        def serve_until_told(self) -> None:
            made_with.append("served")

    monkeypatch.setattr("nestor.page.launch.Server", Server)
    result = CliRunner().invoke(
        app, ["demo", str(tmp_path / "elastic"), "--data", str(tmp_path / "photos"), "--host", "0.0.0.0", "--port", "0"]
    )
    assert result.exit_code == 0, result.output
    view, name, more, served = made_with
    assert (view.explorer.size, name, served) == (24, "elastic", "served")
    assert view.curve.points == ((0.5, 0.95), (1, 1.0))
    assert len(view.opened) == 2
    assert more == {"host": "0.0.0.0", "port": 0}
    assert "Everybody who reaches 0.0.0.0" in result.stderr
