"""The recipe on clips: what it trains, and what its curves show."""

import pytest

from nestor.recipes import mone_video
from nestor.recipes.mone_video import CHEAP, DEDICATED, DENSE, NESTED, RANDOM, STILL, Item, Settings


def test_trainings_are_independent_items_one_for_each_network_of_each_seed():
    found = mone_video.items(Settings(seeds=(3, 4), budgets=(0.35, CHEAP)))
    assert len(set(found)) == len(found) == 2 * 7
    mine = [(item.line, item.budget) for item in found if item.seed == 4]
    assert set(mine) == {
        (NESTED, None),
        (RANDOM, None),
        (DEDICATED, CHEAP),
        (STILL, 1.0),
        *((DENSE, b) for b in (0.35, CHEAP, 1.0)),
    }


def test_a_network_is_scored_where_it_stands_in_for_the_dense_one():
    settings = Settings.quick()
    dense, own = mone_video.network(settings, Item(seed=0, line=DENSE, budget=1.0))
    assert own == {1.0: 1.0}
    full = dense.full_macs(16)
    for line, budget, places in (
        (NESTED, None, {CHEAP, 1.0}),
        (RANDOM, None, {CHEAP, 1.0}),
        (DEDICATED, CHEAP, {CHEAP}),
        (DENSE, CHEAP, {CHEAP}),
    ):
        model, own = mone_video.network(settings, Item(seed=0, line=line, budget=budget))
        assert own.keys() == places
        # Whole tokens in each index, so that up to one of sixteen is not spent.
        assert CHEAP - 1 / 16 < model.macs(model.plan(16, own[CHEAP])) / full <= CHEAP


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
