"""Pictures that are worn or drawn in another style."""

import pytest
import torch
from garments import needs_garments
from tiny_pictures import shapes

from nestor.data.altered import STYLES, WORN, altered, left_out_styles


@pytest.mark.parametrize("kind", [*WORN, *STYLES])
def test_only_pixels_change(kind: str):
    pictures = shapes(6, size=28)
    made = altered(pictures, kind)
    assert (made.labels, made.names, made.shape) == (pictures.labels, pictures.names, pictures.shape)
    same = all(torch.equal(made.pixels(i), pictures.pixels(i)) for i in range(6))
    assert same == (kind == "plain")
    again = altered(pictures, kind)
    assert all(torch.equal(made.pixels(i), again.pixels(i)) for i in range(6))
    assert pictures.cache is None


def test_pictures_take_turns():
    pictures = shapes(7, size=28).cached()
    made = altered(pictures, "plain", "negative")
    for i in range(7):
        wanted = 255 - pictures.pixels(i) if i % 2 else pictures.pixels(i)
        assert torch.equal(made.pixels(i), wanted)


def test_gaps_are_black_squares_of_half_the_side_and_a_negative_is_its_own_inverse():
    pictures = shapes(4, size=28).cached()
    assert pictures.cache is not None
    gaps = altered(pictures, "gaps")
    for i in range(4):
        changed = (gaps.pixels(i) != pictures.pixels(i)).any(0).nonzero()
        assert int((changed.amax(0) - changed.amin(0)).max()) < 14
        assert not gaps.pixels(i)[:, changed[:, 0], changed[:, 1]].any()
    twice = altered(altered(pictures, "negative"), "negative")
    assert all(torch.equal(twice.pixels(i), pictures.pixels(i)) for i in range(4))


@pytest.mark.parametrize("kinds", [(), ("plain", "moon")])
def test_unknown_kinds_are_refused(kinds: tuple[str, ...]):
    with pytest.raises(ValueError, match=r"pictures can be altered by noise, .*; got"):
        altered(shapes(2), *kinds)


@needs_garments
def test_each_style_is_left_out_once():
    found = left_out_styles(28, 30, 20)
    assert tuple(found) == STYLES
    plain = found["plain"][1].stacked()
    for style, (learn, judge) in found.items():
        assert (len(learn), len(judge), len(learn.classes)) == (30, 20, 10)
        assert torch.equal(judge.stacked(), plain) == (style == "plain")
