"""Moving pictures: what they show, and that no single frame tells which way they move."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nestor.data import MOTIONS, Clips, Pictures, load_clips

pytestmark = pytest.mark.usefixtures("one_thread")


def drawing(size: int = 28) -> Image.Image:
    """A grey square on black, brightest towards its upper left corner."""
    values = np.zeros((size, size), np.uint8)
    values[size // 4 : -size // 4, size // 4 : -size // 4] = 120
    values[size // 4 : size // 2, size // 4 : size // 2] = 240
    return Image.fromarray(values)


def arrow(count: int = 64, size: int = 28) -> Pictures:
    """The drawing many times over, in two classes by turns."""
    return Pictures(
        items=[drawing(size)] * count,
        rows=tuple(range(count)),
        size=size,
        classes=("a", "b"),
        labels=tuple(row % 2 for row in range(count)),
        names=tuple(map(str, range(count))),
    )


def moving(motion: str, count: int = 64, **changes) -> list[torch.Tensor]:
    clips = Clips(pictures=arrow(count), **changes)
    return [clips.shown(i) for i in range(count) if MOTIONS[clips.motions[i]] == motion]


def centre(frames: torch.Tensor) -> torch.Tensor:
    """Where the light is, across and down as angles on the circle that the frame is: (F, 2)."""
    light = frames.mean(1)
    pixel = (torch.arange(light.shape[-1]) + 0.5) / light.shape[-1]
    turn = torch.polar(torch.ones_like(pixel), 2 * torch.pi * pixel)
    return torch.stack([(light.sum(1) * turn).sum(-1).angle(), (light.sum(2) * turn).sum(-1).angle()], -1)


def steps(angles: torch.Tensor) -> torch.Tensor:
    """Differences of angles from frame to frame, in [-pi, pi)."""
    return (angles.diff(dim=0) + torch.pi) % (2 * torch.pi) - torch.pi


@pytest.mark.parametrize(("motion", "axis", "sign"), [("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1)])
def test_pictures_move_the_way_they_are_called(motion: str, axis: int, sign: int):
    found = moving(motion)
    assert found
    for frames in found:
        moved = steps(centre(frames)) / (2 * torch.pi)
        assert (sign * moved[:, axis] > 1 / 17).all()
        assert (sign * moved[:, axis] < 1 / 7.5).all()
        assert moved[:, 1 - axis].abs().max() < 0.02


@pytest.mark.parametrize(("motion", "sign"), [("growing", 1), ("shrinking", -1)])
def test_pictures_grow_and_start_over(motion: str, sign: int):
    for frames in moving(motion):
        change = sign * (frames > 0.1).double().mean((1, 2, 3)).log().diff()
        # At most once in seven steps the circle closes, and then the change is the other way and large.
        assert (change > 0).sum() >= 6
        assert change[change < 0].abs().sum() == 0 or change.min() < -0.5


@pytest.mark.parametrize(("motion", "sign"), [("turning clockwise", 1), ("turning counter-clockwise", -1)])
def test_pictures_turn_on_the_spot(motion: str, sign: int):
    for frames in moving(motion, size=40):
        middle = centre((frames > 0.1).float())
        bright = centre((frames > 0.75).float())
        away = (bright - middle + torch.pi) % (2 * torch.pi) - torch.pi
        # From across to down is clockwise, as frames are drawn.
        turned = sign * steps(torch.atan2(away[:, 1], away[:, 0])) / (2 * torch.pi)
        assert (turned > 0.03).all()
        assert (turned < 0.16).all()
        assert steps(middle).abs().max() < 0.1


def test_a_still_picture_is_drawn_upright_in_its_place(monkeypatch):
    clips = Clips(pictures=arrow(1), size=35)

    class Fixed:
        def random(self, count):
            # In the middle, as large as can be, and hardly moving in size.
            return np.array([0.5, 0.5, 1 - 1e-9, 0.0, 0.0])[:count]

    clips.__dict__["motions"] = (MOTIONS.index("shrinking"),)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Fixed())
    first = clips.shown(0)[0]
    # 0.8 of 35 pixels are the 28 of the picture.
    inner = first[:, 3:-4, 3:-4]
    shifted = torch.nn.functional.avg_pool2d(clips.pictures.pixels(0).float() / 255, 2, 1)
    torch.testing.assert_close(inner[:, 1:, 1:], shifted, rtol=0, atol=1e-4)


def test_every_frame_is_distributed_alike_under_all_motions():
    count, frames = 2048, 4
    clips = Clips(pictures=arrow(count), frames=frames, size=16)
    shown = torch.stack([clips.shown(i)[:, 0] for i in range(count)])
    motion = torch.tensor(clips.motions)
    for statistic in (shown.flatten(2), shown.flatten(2).square(), (shown > 0.1).double().mean((2, 3)).unsqueeze(2)):
        spread = statistic.std(0)
        for kind in range(len(MOTIONS)):
            mine, rest = statistic[motion == kind], statistic[motion != kind]
            expected = spread * (1 / len(mine) + 1 / len(rest)) ** 0.5
            # The largest of a thousand correlated normal deviations; a motion that showed would give ten and more.
            assert ((mine.mean(0) - rest.mean(0)).abs() / expected).max() < 5
    for one, other in ((0, 1), (2, 3), (4, 5), (6, 7)):
        mean = [shown[motion == kind].mean((0, 1)) for kind in (one, other)]
        assert (mean[0] - mean[1]).abs().max() < 0.05


def test_clips_depend_on_seed_and_row_only():
    clips = Clips(pictures=arrow(24), seed=3)
    again = Clips(pictures=arrow(24), seed=3)
    other = Clips(pictures=arrow(24), seed=4)
    some = clips.subset([5, 2, 19])
    assert clips.labels == again.labels
    assert clips.labels != other.labels
    for place, index in enumerate((5, 2, 19)):
        assert torch.equal(clips[index][0], again[index][0])
        assert torch.equal(clips[index][0], some[place][0])
        assert clips[index][1] == some[place][1]
        assert some.names[place] == f"{index} {MOTIONS[clips.motions[index]]}"
    assert not torch.equal(clips[0][0], other[0][0])
    assert torch.equal(clips.with_epoch(5)[1][0], clips[1][0])
    few = arrow(4)
    variants = (Clips(pictures=few), Clips(pictures=few, seed=1), Clips(pictures=few, frames=9))
    assert len({each.identity for each in variants}) == 3


def test_items_are_normalised_and_limits_keep_shares():
    clips = Clips(pictures=replace(arrow(400), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)), frames=5, size=24)
    item, label = clips[7]
    assert item.shape == clips.shape == (5, 3, 24, 24)
    assert item.dtype == torch.float32
    scaled = item * torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1) + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(scaled, clips.shown(7), rtol=0, atol=1e-6)
    assert clips.shown(7).min() >= 0
    assert clips.shown(7).max() <= 1
    assert label == clips.labels[7] == clips.motions[7]
    few = clips.limit(80)
    counts, shares = Counter(few.labels), Counter(clips.labels)
    assert len(few) == 80
    assert all(abs(counts[kind] - shares[kind] / 5) < 1 for kind in range(8))
    assert clips.limit(400) is clips


def test_picture_and_motion_together_are_the_classes():
    clips = Clips(pictures=arrow(40), by="picture and motion")
    assert len(clips.classes) == 16
    for index in range(40):
        name, motion = clips.classes[clips.labels[index]].split(" ", 1)
        assert name == "ab"[index % 2]
        assert motion == MOTIONS[clips.motions[index]]
    plain = Clips(pictures=arrow(40))
    assert torch.equal(plain[3][0], clips[3][0])
    assert plain.classes == MOTIONS


def test_a_source_moves_differently_in_training_and_testing(tmp_path: Path):
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(40):
                drawing().save(tmp_path / part / name / f"{number}.png")
    train, test = load_clips(tmp_path, size=40, frames=4)
    assert (len(train), len(test)) == (80, 80)
    assert repr(test).startswith("Clips(80 of 4 frames of 40 px, classes: right, left, down, up, growing,")
    same = sum(a == b for a, b in zip(train.labels, test.labels, strict=True))
    # Ten by chance, never nearly all.
    assert same < 28
    assert not torch.equal(train[0][0], test[0][0])
    again, _ = load_clips(tmp_path, size=40, frames=4)
    assert torch.equal(train[3][0], again[3][0])
    assert load_clips(tmp_path, seed=1)[0].labels not in (train.labels, test.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 1}, "at least 2 frames, since one tells no motion; got 1"),
        ({"size": 4}, "size must be at least 8 pixels, to show motion; got 4"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"by": "garment"}, "by must be motion or 'picture and motion'; got 'garment'"),
        ({"pictures": replace(arrow(2), classes=(), labels=(-1, -1)), "by": "picture and motion"}, "Use by='motion'"),
    ],
)
def test_bad_input_is_refused(changes, message: str):
    with pytest.raises(ValueError, match=message):
        Clips(**({"pictures": arrow(2)} | changes))
    with pytest.raises(ValueError, match="a limit must be at least 1 clip; got 0"):
        Clips(pictures=arrow(2)).limit(0)


def test_unlabelled_pictures_move_all_the_same():
    clips = Clips(pictures=replace(arrow(2), classes=(), labels=(-1, -1)))
    assert clips[0][1] == clips.motions[0]
    assert len(Clips(pictures=arrow(4).subset([]))) == 0
