"""The recipe on clips: what it trains, and what its curves show."""

from dataclasses import replace

import pytest
from garments import needs_garments

from nestor.recipes import mone_video
from nestor.recipes.mone_video import CHEAP, DEDICATED, DENSE, NESTED, RANDOM, STILL, Settings


@needs_garments
def test_contestants_are_one_for_each_network_and_kept_apart():
    settings = replace(Settings.quick(), budgets=(0.43, CHEAP))
    found = list(mone_video.contestants(settings, 4))
    assert [(each.line, tuple(each.places)) for each in found] == [
        (NESTED, (0.43, CHEAP, 1.0)),
        (RANDOM, (0.43, CHEAP, 1.0)),
        (DEDICATED, (CHEAP,)),
        *((DENSE, (b,)) for b in (0.43, CHEAP, 1.0)),
        (STILL, (1.0,)),
    ]
    assert len({each.name for each in found}) == len(found)


@needs_garments
def test_a_network_is_scored_where_it_stands_in_for_the_dense_one():
    for each in mone_video.contestants(Settings.quick(), 0):
        own = each.places.get(CHEAP)
        if own is not None:
            # Whole tokens in each index, so that up to one of sixteen is not spent.
            assert CHEAP - 1 / 16 < each.model.macs(each.model.plan(16, own)) / each.arena.full <= CHEAP
        if 1.0 in each.places:
            assert each.places[1.0] == 1.0
        learn, _ = each.arena.parts
        clip, _ = learn[0]
        assert (clip == clip[:1]).all() == (each.line == STILL)


def test_curves_show_each_kind_of_accuracy_and_leave_out_who_sees_one_frame():
    def scored(x: float) -> dict[str, float]:
        return {"motion": x, "both": x / 2}

    runs = [
        {
            NESTED: {"0.434": scored(0.8 + x), "1.0": scored(0.9)},
            DENSE: {"0.434": scored(0.6), "1.0": scored(0.9 - x)},
            STILL: {"1.0": scored(0.1)},
        }
        for x in (0.0, 0.02)
    ]
    motion, both = mone_video.curves({"accuracy": runs})
    assert motion.lines == {NESTED: {0.434: [0.8, pytest.approx(0.82)], 1.0: [0.9, 0.9]}, DENSE: {0.434: [0.6, 0.6]}}
    assert motion.levels == {"dense": [0.9, pytest.approx(0.88)]}
    assert both.lines[NESTED][0.434] == [0.4, pytest.approx(0.41)]
