"""What pixels tell, against pictures that were drawn to be told, and sets of tasks made of them."""

import gzip
import math

import pytest
import torch
from tiny_pictures import shapes

from nestor.data.derived import directions, edges, foreground, gradients, grey, scattered, shape
from nestor.data.digits import digits
from nestor.measure.fields import alignment, correlation, intersection
from nestor.training.pixel_tasks import NAMES, pixel_tasks
from nestor.training.set_tasks import alone, explained


def bar(angle: float, side: int = 41) -> torch.Tensor:
    """A bar through the middle at this angle to the rows."""
    y, x = torch.meshgrid(*(torch.arange(side) - side // 2,) * 2, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    return ((along.abs() < 14) & (across.abs() < 3)).float()


def test_a_ramp_has_one_gradient():
    ramp = (torch.arange(6.0) * 0.5).expand(2, 5, 6)
    inside = gradients(ramp)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside[:, 0], torch.ones(2, 3, 4))
    assert not inside[:, 1].any()
    torch.testing.assert_close(edges(ramp)[:, 1:-1, 1:-1], torch.ones(2, 3, 4))
    unit = directions(ramp)
    assert unit[:, :, 1:-1, 1:-1].square().sum(1).allclose(torch.ones(()))
    assert not directions(torch.ones(1, 5, 5))[:, :, 1:-1, 1:-1].any()
    assert foreground(torch.tensor([[[0.05, 0.1, 0.9]]])).tolist() == [[[0, 1, 1]]]


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 4, 1.2, math.pi / 2, 2.5])
def test_shape_is_the_place_extent_and_axis_of_what_is_bright(angle):
    numbers = shape(bar(angle)[None])[0]
    assert numbers[:2].tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert numbers[4:6].tolist() == pytest.approx([math.cos(2 * angle), math.sin(2 * angle)], abs=0.03)
    assert numbers[6] == pytest.approx(float(bar(angle).mean()))
    turned = shape(bar(angle).T[None])[0]
    assert turned[2:4].tolist() == pytest.approx(numbers[[3, 2]].tolist(), rel=1e-4)
    moved = shape(bar(angle).roll((4, -2), (0, 1))[None])[0]
    assert (moved - numbers)[:2].tolist() == pytest.approx([-2 / 40, 4 / 40], abs=1e-4)
    assert shape(torch.zeros(1, 5, 5))[0].tolist() == [0.5, 0.5, 0, 0, 0, 0, 0]


def test_pictures_are_scattered_whole():
    pictures = torch.rand(20, 6, 5) + 0.1
    canvas = scattered(pictures, 9, seed=2)
    assert canvas.shape == (20, 9, 9)
    torch.testing.assert_close(canvas.sum((1, 2)), pictures.sum((1, 2)))
    assert len({tuple(row.nonzero()[0].tolist()) for row in canvas}) > 5
    assert torch.equal(canvas, scattered(pictures, 9, seed=2))
    with pytest.raises(ValueError, match="at least as large as its pictures, 6 x 5; got 5"):
        scattered(pictures, 5)


def test_scores_of_maps_by_hand():
    mask = torch.tensor([[1.0, 1, 0, 0]])
    assert intersection(torch.tensor([[3.0, -1, 2, -2]]), mask) == pytest.approx(1 / 3)
    assert intersection(-torch.ones(1, 4), torch.zeros(1, 4)) == 1
    assert correlation(torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 4, 6])) == pytest.approx(1)
    assert correlation(torch.tensor([1.0, 2, 3]), torch.ones(3)) == 0
    right = torch.tensor([1.0, 0]).view(1, 2, 1, 1).expand(1, 2, 2, 2).clone()
    up, wanted = right.flip(1), right.clone()
    assert alignment(5 * right, wanted) == pytest.approx(1)
    assert alignment(up, wanted) == pytest.approx(0)
    wanted[:, :, 0] = 0
    up[:, :, 1] = right[:, :, 1]
    assert alignment(up, wanted) == pytest.approx(1)
    assert explained(torch.tensor([[1.0], [3]]), torch.tensor([[1.0], [3]])) == 1
    assert explained(torch.tensor([[2.0], [2]]), torch.tensor([[1.0], [3]])) == pytest.approx(0)
    with pytest.raises(ValueError, match="the shape of what is wanted"):
        correlation(torch.ones(2), torch.ones(3))


def test_four_tasks_are_made_of_any_pictures():
    made = pixel_tasks(shapes(6), 20)
    assert [task.name for task in made] == list(NAMES)
    assert [task.head for task in made] == [0, 1, 2, 3]
    assert [tuple(task.targets.shape) for task in made] == [(6,), (6, 1, 20, 20), (6, 1, 20, 20), (6, 2, 20, 20)]
    assert all(task.images is made[0].images for task in made)
    perfect = [torch.nn.functional.one_hot(made[0].targets, 2).float(), made[1].targets - 0.5]
    for task, answer in zip(made, [*perfect, made[2].targets, made[3].targets], strict=True):
        assert task.score(answer, task.targets) == pytest.approx(1)
    assert alone(made[2]).head == 0
    with pytest.raises(ValueError, match="no pictures to take the pixels of"):
        grey(shapes(6).subset([]))


def test_digits_are_read_from_the_packages_table(tmp_path):
    file = tmp_path / "digits.csv.gz"
    rows = [[*range(16), *[16] * 48, 7], [0] * 64 + [3]]
    file.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode()))
    pictures, labels = digits(file)
    assert pictures.shape == (2, 8, 8)
    assert labels.tolist() == [7, 3]
    assert pictures[0, 0].tolist() == [n / 16 for n in range(8)]
    for content, message in (
        (b"nothing", "is no readable table"),
        (gzip.compress(b"1,2,3"), r"64 numbers up to 16.*got \(1, 3\)"),
        (gzip.compress(",".join(["17"] * 65).encode()), "64 numbers up to 16"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            digits(file)
    with pytest.raises(FileNotFoundError, match=r"nestor\[data\]"):
        digits(tmp_path / "none.csv.gz")
