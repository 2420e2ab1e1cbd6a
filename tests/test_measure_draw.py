import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from tiny_vit import DENSE, NARROWED, SKIPPING, tiny

from nestor.measure.clock import Timing
from nestor.measure.draw import COLOURS, choices, curve, draw_latency, look, panel, routing, routings
from nestor.measure.draw import palette as colours
from nestor.measure.record import Latency, Network, Point, Profile, Quality


def point(ratio: float, value: float, *, timed: bool = True) -> Point:
    times = [(16, "float32", 160 * ratio), (1, "float32", 20 * ratio)] if timed else []
    latencies = tuple(
        Latency(
            batch=batch,
            precision=precision,
            timing=Timing(median_ms=ms, low_ms=ms, high_ms=ms, rounds=1),
            speed_up=1 / ratio,
            efficiency=1.0,
        )
        for batch, precision, ms in times
    )
    macs = round(1e9 * ratio)
    return Point(budget=ratio, macs=macs, ratio=ratio, quality=Quality(class_cosine=value), latencies=latencies)


def made(*, timed: bool = True, worst: float = 0.9) -> Profile:
    def network(name: str, *points: Point) -> Network:
        return Network(name=name, parameters=10, weight_bytes=40, points=points)

    return Profile(
        size=16,
        pictures=3,
        dense=network("dense", point(1, 1.0, timed=timed)),
        networks=(
            network("nested", point(1, 1.0, timed=timed), point(0.5, 0.95, timed=timed)),
            network("rival", point(1, 1.0, timed=timed), point(0.5, worst, timed=timed)),
        ),
    )


def test_curves_show_every_point():
    left, right = curve(made()).axes
    for axes, scale in ((left, 100), (right, 10)):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert np.asarray(lines["nested"].get_xydata()).tolist() == [[0.5 * scale, 0.95], [scale, 1]]
        assert np.asarray(lines["rival"].get_xydata()).tolist() == [[0.5 * scale, 0.9], [scale, 1]]
        assert lines["dense"].get_linestyle() == "--"
        assert axes.get_ylabel() == "class token cosine"
    assert "batch 16, fp32" in right.get_xlabel()
    assert len(curve(made(timed=False)).axes) == 1


def test_a_rival_that_falls_apart_hides_nothing():
    calm, wild = curve(made(timed=False)).axes[0], curve(made(timed=False, worst=0.1)).axes[0]
    assert calm.get_ylim()[0] < 0.9
    assert 0.8 < wild.get_ylim()[0] < 0.95
    assert [text.get_text() for text in wild.texts] == ["points further down: see the table"]
    assert not calm.texts


def test_latencies_that_were_not_taken_are_refused():
    _, axes = panel()
    with pytest.raises(ValueError, match="timed at batch 4 float32; got batch 16 float32, batch 1 float32"):
        draw_latency(axes, made(), batch=4)
    with pytest.raises(ValueError, match="got nothing"):
        draw_latency(axes, made(timed=False))


def test_lines_differ_in_colour_and_widths_rise_in_brightness():
    assert len({to_rgb(colour) for colour in COLOURS}) == 7
    looks = [look(number) for number in range(14)]
    for marks in (("color", "linestyle"), ("marker", "linestyle")):
        assert len({tuple(each[mark] for mark in marks) for each in looks}) == 14
    for experts in (1, 2, 4, 7):
        light = [sum(colour) for colour in colours(experts)]
        assert len(light) == experts
        assert light == sorted(light)


def test_each_patch_gets_the_tint_of_its_width():
    _, axes = panel()
    picture = torch.zeros(3, 8, 12, dtype=torch.uint8)
    routing(axes, picture, torch.tensor([0, 1, 2, 2, 1, 0]), (2, 3), (4, 8, 16), tint=1.0)
    drawn = np.asarray(axes.get_images()[0].get_array())
    assert drawn.shape == (8, 12, 3)
    expected = np.asarray(colours(3))[[[0, 1, 2], [2, 1, 0]]]
    np.testing.assert_allclose(drawn[::4, ::4], expected)
    np.testing.assert_allclose(drawn[3::4, 3::4], expected)
    with pytest.raises(ValueError, match="each of 2 x 2 patches; got 6"):
        routing(axes, picture, torch.zeros(6, dtype=torch.long), (2, 2), (4, 8))


@pytest.mark.parametrize("nest", [NARROWED, SKIPPING])
def test_routings_are_those_of_the_network(nest):
    model = tiny(nest)
    pixels = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    figure = routings(model, pixels, (1.0, 0.7), title="A picture")
    assert [axes.get_title() for axes in figure.axes] == ["picture", "budget 1", "budget 0.7"]
    share = 100 * model.macs(model.plan(24, 0.7)) / model.full_macs(24)
    assert [axes.get_xlabel() for axes in figure.axes[1:]] == ["100.0% of MACs", f"{share:.1f}% of MACs"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [f"{width} channels" if width else "skipped" for width in nest.widths]
    index = choices(model, pixels, 0.7)
    assert torch.bincount(index, minlength=nest.experts).tolist() == list(model.plan(24, 0.7))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (model.settings.mean, model.settings.std))
    with torch.no_grad():
        decision = model(((pixels / 255 - mean) / std)[None], 0.7).routings[0]
    assert torch.equal(index, decision.index[0, :, 0])


def test_a_picture_may_be_a_file(tmp_path):
    Image.new("RGB", (40, 30), (10, 200, 30)).save(tmp_path / "one.png")
    figure = routings(tiny(NARROWED), tmp_path / "one.png", (0.7,))
    assert figure.axes[0].get_xlabel() == "16 x 16 px"


def test_bad_input_is_refused(tmp_path):
    pixels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least 2 experts"):
        routings(tiny(DENSE), pixels, (1.0,))
    with pytest.raises(ValueError, match=r"budget must lie in .* got 0\.01"):
        routings(tiny(NARROWED), pixels, (0.01,))
    with pytest.raises(FileNotFoundError):
        routings(tiny(NARROWED), tmp_path / "none.png", (0.7,))


def test_nothing_goes_through_pyplot(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    curve(made())
    assert "matplotlib.pyplot" not in sys.modules
