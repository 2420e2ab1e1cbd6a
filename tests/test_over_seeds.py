import pytest

from nestor.measure.over_seeds import over_seeds


def test_one_network_comes_first_and_the_others_keep_their_order():
    found = over_seeds({"a": [1.0], "b": [2.0, 3.0], "c": [4.0]}, "b", "title")
    assert list(found.rows.items()) == [("b", [2.0, 3.0]), ("a", [1.0]), ("c", [4.0])]
    assert (found.title, found.across) == ("title", "accuracy")
    for rows in ({"a": [1.0]}, {}):
        with pytest.raises(ValueError, match="the first row must be one of"):
            over_seeds(rows, "b", "")
