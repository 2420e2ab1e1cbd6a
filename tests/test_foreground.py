"""Whether width goes to the thing that a picture shows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pictures import shapes
from tiny_vit import DENSE, PUBLISHED, tiny

from nestor.data import Pictures
from nestor.measure.foreground import foreground, in_widest
from nestor.measure.routed import experts


def on_black(*rows: int) -> Pictures:
    """One picture for each number, of 16 px, whose first so many rows of pixels are grey."""
    items = []
    for count in rows:
        values = np.zeros((16, 16, 3), dtype=np.uint8)
        values[:count] = 90
        items.append(Image.fromarray(values))
    return replace(shapes(len(rows)), items=items)


def test_foreground_is_what_is_brighter_than_the_ground():
    shown = foreground(on_black(6, 0), 4)
    assert shown.shape == (2, 16)
    assert shown[0].tolist() == [1.0] * 4 + [0.5] * 4 + [0.0] * 8
    assert not shown[1].any()
    assert not foreground(on_black(6), 4, ground=90).any()


@pytest.mark.parametrize("budget", [0.65, 0.8])
def test_patches_of_the_widest_expert_are_counted_one_by_one(budget: float):
    model, pictures = tiny(PUBLISHED), on_black(3, 7, 9, 14)
    found = in_widest(model, pictures, 4, (budget,))
    shown, routed = foreground(pictures, 4), experts(model, pictures.stacked(), budget)[:, 0]
    wide = [float(shown[i, p]) for i in range(4) for p in range(16) if routed[i, p] == 2]
    assert found["widest"][str(budget)] == pytest.approx(math.fsum(wide) / len(wide))
    assert found["all"][str(budget)] == pytest.approx(float(shown.mean()))


def test_at_full_budget_every_patch_is_wide():
    found = in_widest(tiny(PUBLISHED), on_black(3, 9), 4, (1.0,))
    assert found["widest"] == pytest.approx(found["all"])


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match=r"whole number of patches; got 1 of 16 px and patches of 5"):
        foreground(on_black(3), 5)
    with pytest.raises(ValueError, match="got 0 of 16 px"):
        foreground(on_black(3).subset([]), 4)
    with pytest.raises(ValueError, match="0 to 254; got 255"):
        foreground(on_black(3), 4, ground=255)
    with pytest.raises(ValueError, match="single expert"):
        in_widest(tiny(DENSE), on_black(3), 4, (1.0,))
    least = tiny(PUBLISHED).least_budget(16)
    with pytest.raises(ValueError, match="it has none"), torch.no_grad():
        in_widest(tiny(PUBLISHED), on_black(3), 4, (least,))
