"""Clips that are kept in memory show what they show when drawn."""

import pytest
import torch
from test_clips import arrow

from nestor.data import Clips
from nestor.data.drawn import Drawn, drawn

pytestmark = pytest.mark.usefixtures("one_thread")


def clips(**changes) -> Clips:
    return Clips(pictures=arrow(6), frames=4, size=16, **changes)


def test_kept_clips_are_the_clips_to_a_half_shade():
    ours, theirs = drawn(clips(by="picture and motion")), clips(by="picture and motion")
    assert (ours.labels, ours.classes, ours.shape) == (theirs.labels, theirs.classes, theirs.shape)
    assert ours.kept.dtype == torch.uint8
    for i in range(6):
        assert (ours.shown(i) - theirs.shown(i)).abs().max() <= 0.5 / 255 + 1e-6
        assert ours[i][0].shape == theirs[i][0].shape
        torch.testing.assert_close(ours[i][0], theirs[i][0], rtol=0, atol=0.01)
        assert ours[i][1] == theirs[i][1]
    assert ours.identity != theirs.identity


def test_another_order_shows_the_same_frames_in_other_places():
    ours = drawn(clips())
    backwards, still = ours.ordered([3, 2, 1, 0]), ours.ordered([2] * 4)
    assert torch.equal(backwards.shown(1), ours.shown(1).flip(0))
    assert torch.equal(still.shown(1), ours.shown(1)[2].expand(4, -1, -1, -1))
    assert len({each.identity for each in (ours, backwards, still)}) == 3
    assert still.labels == ours.labels
    assert still.kept is ours.kept


def test_a_subset_keeps_its_clips_and_their_order():
    ours = drawn(clips()).ordered([0, 0, 1, 1])
    for part, rows in ((ours.subset([4, 1]), [4, 1]), (ours.with_epoch(3), range(6))):
        assert isinstance(part, Drawn)
        for place, row in enumerate(rows):
            assert torch.equal(part.shown(place), ours.shown(row))
            assert part.labels[place] == ours.labels[row]
    assert len(ours.limit(3)) == 3


def test_frames_that_are_not_the_clips_own_are_refused():
    ours = drawn(clips())
    with pytest.raises(ValueError, match=r"order must name one of 4 frames.*got \(0, 1, 2, 4\)"):
        ours.ordered([0, 1, 2, 4])
    with pytest.raises(ValueError, match=r"for each place; got \(0,\)"):
        ours.ordered([0])
    own = {"pictures": ours.pictures, "frames": 4, "size": 16, "order": ours.order}
    with pytest.raises(ValueError, match=r"kept frames must be uint8 \(6, 4, 1, 16, 16\); got float32"):
        Drawn(**own, kept=ours.kept.float())
    with pytest.raises(ValueError, match=r"got uint8 \(5, 4, 1, 16, 16\)\. Draw them"):
        Drawn(**own, kept=ours.kept[:5])
