"""What a network reaches in another's time."""

import pytest
from tiny_vit import DENSE, NARROWED, tiny

from nestor.measure.frontier import milliseconds, reached
from nestor.recipes.base import in_time


def test_between_budgets_on_straight_lines_and_never_less_for_more():
    costs, values = {0.3: 10.0, 0.5: 20.0, 1.0: 40.0}, {0.3: 0.6, 0.5: 0.8, 1.0: 0.7}
    assert reached(costs, values, 10) == 0.6
    assert reached(costs, values, 15) == pytest.approx(0.7)
    assert reached(costs, values, 30) == reached(costs, values, 99) == 0.8
    with pytest.raises(ValueError, match="at least that of the cheapest budget, 10; got 9"):
        reached(costs, values, 9)


def test_claims_compare_at_the_networks_own_times_where_the_rival_is_ever_so_fast():
    took = {"fp32": {"ours": {1.0: 40.0, 0.5: 30.0, 0.3: 5.0}, "theirs": {1.0: 40.0, 0.5: 20.0}}}
    (claim,) = in_time("accuracy", {0.3: 0.5, 0.5: 0.8, 1.0: 0.9}, {0.5: 0.6, 1.0: 0.9}, took, ("ours", "theirs"))
    assert (claim.left, claim.right, claim.holds) == (0.8, pytest.approx(0.75), True)
    assert claim.text == "accuracy, ours at 0.5 against theirs in the same time, fp32"


def test_every_budget_that_can_be_met_is_timed():
    took = milliseconds({"nested": tiny(NARROWED), "dense": tiny(DENSE)}, (1.0, 0.6, 0.01), size=16, batch=2, rounds=3)
    assert {name: set(at) for name, at in took["bf16"].items()} == {"nested": {1.0, 0.6}, "dense": {1.0}}
    assert set(took) == {"fp32", "bf16"}
    assert all(time > 0 for at in took.values() for times in at.values() for time in times.values())
