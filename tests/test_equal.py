"""Contestants at equal training compute, and the small parts that comparisons from nothing share."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from garments import needs_garments
from matplotlib.figure import Figure
from tiny_pictures import shapes
from tiny_vit import DENSE, NARROWED, tiny

from nestor.data import MOTIONS
from nestor.data.clips import Clips
from nestor.data.drawn import drawn
from nestor.data.kept import decoded
from nestor.layers.maps import MapHead
from nestor.layers.nested import Nest
from nestor.measure.by_budget import Pair, against, of_kind, over_runs
from nestor.measure.draw_maps import draw_maps, over_spent, spread
from nestor.measure.exact import token_error
from nestor.measure.motions import told_motions
from nestor.measure.routed import experts, miscounted
from nestor.models.mapped import Mapped
from nestor.models.merged import Merged
from nestor.models.scratch import scratch
from nestor.models.scratch_video import scratch_video
from nestor.models.uniform import randomly_routed
from nestor.surgery.family import family
from nestor.surgery.maps import elastic_maps
from nestor.surgery.nest import published, shape
from nestor.surgery.space import nested_space
from nestor.training import Chosen, Fit, Fixed
from nestor.training.equal import Arena, Contestant, Outcome, Result, Terms, compete, recognised, tried

SHARES = (0.3, 0.7, 1.0)
TERMS = Terms(how=Fit(batch=6, rate=0.02, sandwich=False), steps=4.0, batch=6)


def arena() -> Arena:
    return Arena(full=tiny(DENSE).full_macs(16), patches=16, parts=(shapes(12), shapes(6, seed=1)))


def contestants(lines: int, seed: int) -> Iterator[Contestant]:
    torch.manual_seed(seed)
    model = tiny(NARROWED, classes=2, head="mean")
    both = (
        arena().elastic("elastic", randomly_routed(model), Chosen(), SHARES),
        arena().ordinary("plain", tiny(DENSE, classes=2, head="mean"), 1.0),
    )
    yield from both[:lines]


def test_an_elastic_contestant_stands_in_where_it_can():
    model = Merged(tiny(DENSE))
    found = arena().elastic("merging", model, Chosen(), (0.01, *SHARES))
    least = model.least_budget(16)
    assert set(found.places) == {share for share in SHARES if share >= least}
    assert found.name == "merging"
    assert arena().elastic("merging", model, Chosen(), SHARES, name="other").name == "other"
    nested = arena().elastic("nested", tiny(NARROWED), Chosen(), (0.7, 1.0))
    assert nested.places[1.0] == 1.0
    assert len(nested.spent()) == 1
    assert 1 - 1 / 16 / 0.7 < nested.spent()[0] <= 1


def test_a_dedicated_contestant_is_trained_where_it_is_scored():
    found = arena().dedicated("dedicated", tiny(NARROWED), 0.7)
    assert found.budgets == Fixed(budget=found.places[0.7])
    assert found.name == "dedicated 0.7"
    with pytest.raises(ValueError, match=r"dedicated must reach 0\.01 of the dense network's cost and cannot"):
        arena().dedicated("dedicated", tiny(NARROWED), 0.01)


@pytest.mark.usefixtures("one_thread")
def test_a_trial_keeps_to_its_allowance_and_leaves_the_generator_and_the_network_alone(tmp_path: Path):
    entrant = next(contestants(1, 3))
    before = {name: tensor.clone() for name, tensor in entrant.model.state_dict().items()}
    state = torch.get_rng_state()
    found = tried(entrant, TERMS, 3, tmp_path / "kept")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in entrant.model.state_dict().items())
    assert (found.seed, found.line, found.spent) == (3, "elastic", entrant.spent())
    assert 0.5 < found.paid <= 1
    assert found.scores.keys() == {str(place) for place in entrant.places}
    assert (tmp_path / "kept" / "fit.json").is_file()
    torch.manual_seed(77)
    assert tried(entrant, TERMS, 3) == found


@pytest.mark.usefixtures("one_thread")
def test_all_compete_and_results_come_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # On one core all pieces run here, which is quicker than starting processes for so little.
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    found = compete(partial(contestants, 2), replace(TERMS, steps=2.0), (5, 6), tmp_path)
    assert [(each.seed, each.line) for each in found.results] == [
        (seed, line) for seed in (5, 6) for line in ("elastic", "plain")
    ]
    folders = {str(file.parent.relative_to(tmp_path)) for file in tmp_path.rglob("fit.json")}
    assert folders == {f"seed{seed}/{name}" for seed in (5, 6) for name in ("elastic", "plain-1.0")}
    assert [list(run) for run in found.runs] == [["elastic", "plain"]] * 2
    assert found.runs[1]["plain"] == found.results[3].scores
    assert found.spent <= 1
    assert found.paid[0] <= found.paid[1] <= 1


@pytest.mark.parametrize(("lines", "seeds"), [(2, ()), (0, (1,))])
def test_nobody_to_compete_is_refused(lines: int, seeds: tuple[int, ...]):
    with pytest.raises(ValueError, match="there must be a seed and a contestant of it"):
        compete(partial(contestants, lines), TERMS, seeds)


def test_results_of_one_line_are_put_together():
    def result(seed: int, place: str, paid: float) -> Result:
        return Result(seed=seed, line="dense", scores={place: paid}, paid=paid, spent=(paid / 2,))

    found = Outcome(results=[result(9, "0.5", 0.9), result(9, "1.0", 1.0), result(2, "0.5", 0.8)])
    assert found.runs == [{"dense": {"0.5": 0.9, "1.0": 1.0}}, {"dense": {"0.5": 0.8}}]
    assert found.paid == (0.8, 1.0)
    assert found.spent == 0.5


def test_what_is_recognised():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert recognised(logits, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="one prediction a label"):
        recognised(logits, torch.tensor([0, 1]))


def test_a_motion_is_told_alone_and_with_its_picture():
    n = len(MOTIONS)
    logits = torch.nn.functional.one_hot(torch.tensor([3, n + 3, n + 1, 0]), 2 * n).float()
    assert told_motions(logits, torch.tensor([3, 3, n + 2, n + 5])) == {"motion": 0.5, "both": 0.25}


def test_one_network_is_held_against_others_where_they_have_values():
    values = {"a": {0.5: 3.0, 1.0: 4.0}, "b": {0.5: 1.0}, "c": {1.0: 5.0}}
    found = list(against(values, "a", ("b", "c"), (0.5, 1.0)))
    assert found == [
        Pair(network="a", rival="b", budget=0.5, ours=3.0, theirs=1.0),
        Pair(network="a", rival="c", budget=1.0, ours=4.0, theirs=5.0),
    ]
    assert found[0].told == "at 0.5, a against b"
    with pytest.raises(KeyError):
        list(against(values, "b", ("c",), (1.0,)))


def test_curves_over_runs_of_one_kind():
    runs = [
        {
            "dense": {"0.5": {"x": 1.0 + r, "y": 0.0}, "1.0": {"x": 2.0, "y": 0.0}},
            "other": {"1.0": {"x": 0.5, "y": 9.0}},
        }
        for r in range(2)
    ]
    one = of_kind(runs, "x")
    assert one[1] == {"dense": {"0.5": 2.0, "1.0": 2.0}, "other": {"1.0": 0.5}}
    found = over_runs(one, title="T", dense="dense", whole="dense", without=("other",))
    assert (found.title, found.upward, found.least) == ("T, 2 seeds", "accuracy, test part", pytest.approx(0.97))
    assert (found.lines, found.levels) == ({"dense": {0.5: [1.0, 2.0]}}, {"dense": [2.0, 2.0]})
    with pytest.raises(KeyError):
        over_runs([{"dense": {"0.5": 1.0}}], title="T", dense="dense")
    with pytest.raises(KeyError):
        of_kind(runs, "z")


def test_a_family_is_made_from_the_same_weights():
    make = partial(scratch, "ab", side=28, patch=7, width=32, depth=3, heads=4)
    dense, prefixed = make(), make(prefix=1, head="class_mean")
    images = torch.randn(32, 3, 28, 28)
    found = family(dense, prefixed, images, shape(32, 128, 4, merge=0.0))
    assert list(found.elastic)[:2] == ["nested", "published shape"]
    for name, model in found.elastic.items():
        wanted = prefixed if name == "pruning" else dense
        assert token_error(model, wanted, images[:4]) < 2e-5
        assert model.least_budget(16) < 0.5
    assert miscounted(found.nested, images, 0.5) == 0
    assert experts(found.nested, images, 0.5).shape == (32, 1, 16)
    with pytest.raises(ValueError, match="one expert"):
        family(found.nested, prefixed, images, shape(32, 128, 4))


def test_a_spatial_encoder_is_nested_and_exact():
    dense = scratch_video(
        "ab", side=24, patch=6, width=32, depth=2, heads=4, frames=4, tubelet=2, temporal=1, mean=(0.0,) * 3
    )
    clips = torch.randn(8, 4, 3, 24, 24)
    found = nested_space(dense, clips, published(32, 128, 4), compensated=False)
    assert token_error(found, dense, clips) < 2e-5
    assert found.least_budget(16) < 0.6
    with pytest.raises(ValueError, match="the last expert must be the whole network"):
        nested_space(dense, clips, Nest(widths=(8, 16), hidden=(64, 64), heads=(4, 4)))


def test_still_clips_show_their_middle_frame():
    clips = drawn(Clips(pictures=shapes(4, size=28), frames=4, size=16))
    found = clips.still()
    assert torch.equal(found[1][0], clips[1][0][2].expand(4, -1, -1, -1))
    assert found.labels == clips.labels
    assert torch.equal(clips.stacked(2), torch.stack([clips[0][0], clips[1][0]]))
    assert len(clips.stacked(9)) == 4


def mapped() -> Mapped:
    torch.manual_seed(0)
    return Mapped(tiny(DENSE, prefix=1), MapHead((24, 8, 4)))


def test_networks_of_maps_draw_the_full_networks_maps_at_full_budget():
    full, images = mapped(), torch.randn(16, 3, 16, 16)
    found = elastic_maps(full, images)
    assert list(found) == ["nested", "merging", "pruning", "uniform width"]
    with torch.no_grad():
        for network in found.values():
            assert network.head is full.head
            assert (network.map(images) - full.map(images)).abs().max() < 1e-4
    with pytest.raises(ValueError, match="one expert"):
        elastic_maps(found["nested"], images)


def test_maps_are_linesbeside_their_pictures():
    full, pictures = mapped(), shapes(9, labelled=False)
    few = spread(pictures, 2)
    assert few.names == ("1", "5")
    assert len(spread(pictures, 100)) == 8
    figure = draw_maps(full, full, few, (1.0,))
    assert isinstance(figure, Figure)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["photograph", "full network", "budget 1"]
    assert len(figure.axes) == 6
    with pytest.raises(ValueError, match="at least 1 picture; got 0"):
        spread(pictures, 0)


def test_as_many_lines_over_what_was_spent_as_can_be_told_apart():
    found = {str(i): {"0.5": {"spent": 0.4, "correlation": float(i)}} for i in range(9)}
    order = ("8", "missing", *map(str, range(8)))
    lines = over_spent(found, order, what="correlation", told="c", title="t")
    assert list(lines.lines) == ["8", "0", "1", "2", "3", "4"]
    assert lines.lines["8"] == {0.4: [8.0]}


@needs_garments
def test_the_parts_of_a_source_may_have_sizes_of_their_own():
    train, test = decoded("fashion-mnist", 28, 20, held_out=10, mean=(0.1,) * 3, std=(0.2,) * 3)
    assert (len(train), len(test), train.mean, test.std) == (20, 10, (0.1,) * 3, (0.2,) * 3)
    assert [len(part) for part in decoded("fashion-mnist", 28, 20)] == [20, 20]
    with pytest.raises(ValueError, match="at least 1 picture; got 0"):
        decoded("fashion-mnist", 28, 20, held_out=0)
