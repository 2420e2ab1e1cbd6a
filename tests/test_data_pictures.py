"""The dataset itself: splits, limits, cache, random changes."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader

from nestor.data import Augment, Pictures, load, split
from nestor.data.scan import for_all, watch
from nestor.data.strata import allot, pick


def made(labels: list[int], *, groups: tuple[str, ...] = (), size: int = 8, grey: bool = False) -> Pictures:
    """Random pictures with the given labels."""
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (size, size, 1 if grey else 3), dtype=np.uint8) for _ in labels]
    return Pictures(
        items=[Image.fromarray(np.broadcast_to(values, (size, size, 3)).copy()) for values in arrays],
        rows=tuple(range(len(labels))),
        size=size,
        classes=tuple(f"c{label}" for label in range(max(labels) + 1)),
        labels=tuple(labels),
        names=tuple(map(str, range(len(labels)))),
        groups=groups,
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=6), st.floats(0.05, 0.95), st.integers(0, 9))
def test_a_split_is_a_partition_with_every_class_on_both_sides(sizes: list[int], fraction: float, seed: int):
    labels = [label for label, count in enumerate(sizes) for _ in range(count)]
    pictures = made(labels, size=1)
    train, test = split(pictures, fraction=fraction, seed=seed)
    assert sorted(train.rows + test.rows) == list(pictures.rows)
    assert set(train.labels) == set(test.labels) == set(labels)
    # A class may differ from its share by less than one picture, and by what keeps the classes on both sides.
    forced = sum(max(0, 1 - fraction * count, fraction * count - (count - 1)) for count in sizes)
    for label, count in enumerate(sizes):
        held = test.labels.count(label)
        assert abs(held - fraction * count) < 1 + forced
        assert 1 <= held <= count - 1
    assert split(pictures, fraction=fraction, seed=seed)[1].rows == test.rows


def test_a_split_keeps_the_shares_of_groups_and_depends_on_the_seed():
    labels = [0] * 40 + [1] * 40
    groups = tuple(("mono" if index % 4 == 0 else "poly") for index in range(80))
    _, test = split(made(labels, size=1), groups=groups, fraction=0.4)
    assert Counter((label, groups[row]) for label, row in zip(test.labels, test.rows, strict=True)) == {
        (label, group): count for label in (0, 1) for group, count in (("mono", 4), ("poly", 12))
    }
    own = made(labels, groups=groups, size=1)
    assert split(own, fraction=0.4)[1].rows == test.rows
    assert split(own, fraction=0.4)[1].groups == tuple(groups[row] for row in test.rows)
    assert split(own, fraction=0.4, seed=1)[1].rows != test.rows


def test_a_split_that_cannot_be():
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\); got 1.0"):
        split(made([0, 0]), fraction=1.0)
    with pytest.raises(ValueError, match="at least two pictures of every class; class 'c1' has 1"):
        split(made([0, 0, 1]))
    with pytest.raises(ValueError, match="groups needs one name for each of 2 pictures; got 1"):
        split(made([0, 0]), groups=["x"])
    with pytest.raises(ValueError, match="seed must be at least 0; got -1"):
        split(made([0, 0]), seed=-1)


def test_allotment_by_largest_remainder():
    assert allot([50, 30, 20], 10) == [5, 3, 2]
    assert allot([5, 3, 2], 5) == [3, 1, 1]
    assert allot([97, 2, 1], 10, least=1) == [8, 1, 1]
    assert allot([4, 4], 8, spare=1) == [3, 3]
    assert pick([], (), 3, seed=0) == []


def test_a_limit_keeps_the_shares_and_every_class():
    pictures = made([0] * 60 + [1] * 30 + [2] * 2, size=1)
    assert Counter(pictures.limit(9).labels) == {0: 5, 1: 3, 2: 1}
    assert len(pictures.limit(2)) == 2
    assert pictures.limit(92) is pictures
    assert pictures.limit(9, seed=3).rows == pictures.limit(9, seed=3).rows != pictures.limit(9).rows
    with pytest.raises(ValueError, match="at least 1 picture; got 0"):
        pictures.limit(0)


def test_pictures_as_one_tensor():
    pictures = made([0, 1, 1], size=9)
    assert torch.equal(pictures.stacked(2), torch.stack([pictures[0][0], pictures[1][0]]))
    assert len(pictures.stacked()) == len(pictures.stacked(9)) == 3


@pytest.mark.parametrize("grey", [True, False])
def test_a_cache_changes_no_bit_and_grey_takes_one_channel(grey: bool):
    pictures = made([0, 1, 1, 0], size=9, grey=grey).at(5).augmented(Augment(jitter=0.3, rotate90=True))
    kept = pictures.cached()
    assert kept.cache is not None
    assert kept.cache.shape == (4, 1 if grey else 3, 5, 5)
    assert kept.cache.dtype == torch.uint8
    for part, whole in ((kept, pictures), (kept.subset([2, 0]), pictures.subset([2, 0]))):
        for index in range(len(part)):
            assert torch.equal(part[index][0], whole[index][0])
            assert part[index][1] == whole[index][1]
    assert kept.cached() is kept
    assert kept.at(7).cache is None
    assert torch.equal(kept.at(7)[1][0], pictures.at(7)[1][0])


def test_one_coloured_picture_among_grey_ones_keeps_its_colour():
    grey, colour = Image.new("RGB", (4, 4), (9, 9, 9)), Image.new("RGB", (4, 4), (1, 2, 3))
    pictures = Pictures(
        items=[grey, colour, grey], rows=(0, 1, 2), size=4, classes=(), labels=(-1, -1, -1), names=("a", "b", "c")
    ).cached()
    assert [pictures.pixels(index)[:, 0, 0].tolist() for index in range(3)] == [[9, 9, 9], [1, 2, 3], [9, 9, 9]]


def test_random_changes_depend_on_seed_epoch_and_picture_alone():
    pictures = made([0] * 6).augmented(Augment(jitter=0.4, rotate90=True), seed=3)
    again = pictures.with_epoch(4)
    torch.manual_seed(99)
    other = [pictures.with_epoch(4)[index][0] for index in reversed(range(6))][::-1]
    assert all(torch.equal(again[index][0], other[index]) for index in range(6))
    assert any(not torch.equal(again[index][0], pictures[index][0]) for index in range(6))
    reseeded = pictures.augmented(pictures.augment, seed=5).with_epoch(4)
    assert any(not torch.equal(again[index][0], reseeded[index][0]) for index in range(6))
    # The same picture in a smaller set is changed in the same way.
    assert torch.equal(again.subset([5])[0][0], again[5][0])
    plain = made([0] * 6)
    assert torch.equal(pictures.augmented(None)[2][0], plain[2][0])
    assert torch.equal(again.pixels(2), plain.pixels(2))


def test_random_changes_are_the_same_on_several_threads():
    pixels = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(Augment(jitter=0.5)(pixels, seed=0, epoch=0, row=0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_flips_and_turns_only_move_pixels_and_all_of_them_occur():
    pixels = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    plain = pixels.float() / 255
    mirrored = {tuple(Augment()(pixels, seed=0, epoch=0, row=row).flatten().tolist()) for row in range(40)}
    assert mirrored == {tuple(plain.flatten().tolist()), tuple(plain.flip(2).flatten().tolist())}
    turn = Augment(flip=False, rotate90=True)
    turned = {tuple(turn(pixels, seed=0, epoch=0, row=row).flatten().tolist()) for row in range(60)}
    assert turned == {tuple(torch.rot90(plain, k, (1, 2)).flatten().tolist()) for k in range(4)}
    assert torch.equal(Augment(flip=False)(pixels, seed=0, epoch=0, row=0), plain)


def test_jitter_stays_within_its_bounds():
    pixels = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    values = [Augment(flip=False, jitter=0.2)(pixels, seed=0, epoch=e, row=0).unique() for e in range(50)]
    # Contrast does not move a constant picture, so that brightness alone shows.
    assert all(value.max() - value.min() < 1e-6 for value in values)
    brightness = torch.stack([value[0] for value in values]) * 255 / 100
    assert 0.8 <= brightness.min() < 0.85
    assert 1.15 < brightness.max() <= 1.2
    wild = Augment(jitter=0.9)(pixels.random_(generator=torch.Generator().manual_seed(0)), seed=0, epoch=1, row=0)
    assert wild.min() >= 0
    assert wild.max() <= 1
    with pytest.raises(ValueError, match=r"jitter must lie in \[0, 1\); got 1"):
        Augment(jitter=1)


def test_fields_that_do_not_fit_are_refused():
    pictures = made([0, 1])
    with pytest.raises(ValueError, match="size must be at least 1 pixel; got 0"):
        pictures.at(0)
    with pytest.raises(ValueError, match="seed and epoch must be at least 0; got 0 and -1"):
        pictures.with_epoch(-1)
    fields = {"items": (), "size": 4, "classes": (), "labels": (), "names": ()}
    with pytest.raises(ValueError, match="equally long"):
        Pictures(rows=(0,), **fields)
    with pytest.raises(ValueError, match="std above 0"):
        Pictures(rows=(), std=(1.0, 0.0, 1.0), **fields)


def test_a_data_loader_of_two_processes_gives_what_the_set_gives():
    pictures = made([0, 1, 2, 0, 1]).augmented(Augment(jitter=0.2)).with_epoch(2)
    for images, labels in DataLoader(pictures, batch_size=5, num_workers=1):
        assert labels.tolist() == [0, 1, 2, 0, 1]
        assert torch.equal(images, torch.stack([pictures[index][0] for index in range(5)]))


def test_a_file_that_vanishes_or_is_damaged_later_is_named(tmp_path: Path):
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    pictures = load(tmp_path, size=4)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"junk")
    with pytest.raises(FileNotFoundError, match=r"a\.png has vanished since the set was loaded"):
        pictures[0]
    with pytest.raises(ValueError, match=r"b\.png can no longer be read"):
        pictures[1]
    with pytest.raises(FileNotFoundError, match=r"a\.png has vanished"):
        pictures.cached()
    with pytest.raises(IndexError):
        pictures[2]


def test_results_of_threads_come_in_order():
    assert list(for_all(lambda index: index * index, 1000, what="")) == [index * index for index in range(1000)]


@pytest.mark.parametrize(
    ("terminal", "patience", "shown"), [(True, 0.0, True), (True, 1e9, False), (False, 0.0, False)]
)
def test_progress_is_shown_on_a_terminal_when_it_takes_long(terminal: bool, patience: float, shown: bool):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal)
    assert list(watch(range(5), total=5, what="Checking", patience=patience, console=console)) == list(range(5))
    assert ("Checking" in screen.getvalue()) is shown
    assert shown or not screen.getvalue()
