import matplotlib as mpl
import numpy as np
import pytest

from nestor.measure.dots import Dots, draw_dots
from nestor.recipes.base import Claim, claims

mpl.use("Agg")


def test_every_run_is_a_dot_and_every_mean_is_written():
    figure = draw_dots(Dots(title="", across="accuracy", rows={"ours": [0.5, 0.7], "rival": [0.4]}))
    (axes,) = figure.axes
    dots = [np.asarray(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "o"]
    assert [list(each) for each in dots] == [[0.5, 0.7], [0.4]]
    assert [text.get_text() for text in axes.texts] == ["0.600", "0.400"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "rival"]


@pytest.mark.parametrize("rows", [{}, {"ours": []}])
def test_nothing_to_draw(rows: dict):
    with pytest.raises(ValueError, match="every network needs a run"):
        Dots(title="", across="", rows=rows)


def test_claims_are_made_of_rows():
    assert claims({"a": (1, "<=", 2)}, exact=True) == [Claim(text="a", left=1, relation="<=", right=2, exact=True)]
    with pytest.raises(ValueError, match="a relation must be one of"):
        claims({"a": (1, "=<", 2)})
