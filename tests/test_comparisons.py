"""What comparisons of tuned networks share: cells, tunings, scores by budget, and what is gathered of several runs."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pictures import shapes
from tiny_vit import DENSE, NARROWED, tiny

from nestor.data import Augment, Pictures
from nestor.data.kept import decoded, listed
from nestor.experts.feedforward import FeedForward
from nestor.layers.mixture import Mixture
from nestor.measure.by_budget import averages, gathered, joined, numbered, over_budgets
from nestor.measure.met import at_their_expert, most_met
from nestor.measure.reach import in_reach
from nestor.models.composed import Composed, stack
from nestor.models.composed import tiny as small
from nestor.models.merged import Merged
from nestor.models.saved import load_model
from nestor.models.uniform import randomly_routed
from nestor.models.vit import ViT
from nestor.recipes import mone, mone_training
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.given import Pooled
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.surgery.nest import nest
from nestor.surgery.start import as_published, folded, perturbed, routed, sizes, unrotated
from nestor.training import Fit, Fixed, Sampled
from nestor.training.folder import keeping
from nestor.training.scored import aurocs
from nestor.training.tuning import Tuning, Variant, tune, tune_dense
from nestor.types import Sparse

pytestmark = pytest.mark.usefixtures("one_thread")

BUDGETS = (1.0, 0.8, 0.5, 0.01)


@dataclass(frozen=True, kw_only=True)
class OnShapes(Tuning):
    """A tuning whose cells are noise with a square."""

    size: int = 16
    dense_epochs: int = 2
    epochs: int = 1
    batch: int = 8
    calibration: int = 6
    budgets: tuple[float, ...] = (1.0, 0.6)

    def parts(self) -> tuple[Pictures, Pictures]:
        return shapes(24), shapes(12, seed=1)


def equal(ours: ViT, theirs: ViT) -> bool:
    return all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_pictures_are_loaded_once_and_drawn_evenly():
    pytest.importorskip("elpv_dataset")
    train, test = decoded("elpv", 28, 24)
    assert (len(train), len(test)) == (24, 24)
    assert train.cache is not None
    assert decoded("elpv", 28, 24)[0] is train
    every, _ = listed("elpv", 28)
    assert listed("elpv", 28)[0] is every
    assert every.cache is None
    assert every.limit(24).names == train.names
    with pytest.raises(ValueError, match="a limit must be at least 1 picture; got 0"):
        decoded("elpv", 28, 0)
    with pytest.raises(FileNotFoundError, match="there is no file or folder moon"):
        listed("moon", 28)


def test_budgets_in_reach_are_those_that_the_network_can_keep():
    for model in (tiny(), tiny(NARROWED), Merged(tiny())):
        found = in_reach(model, 16, BUDGETS)
        assert found[0] == 1
        for budget in BUDGETS:
            if budget in found:
                assert model.macs(model.plan(16, budget)) <= budget * model.full_macs(16)
            else:
                with pytest.raises(ValueError, match="budget must lie in"):
                    model.plan(16, budget)
    assert in_reach(tiny(), 16, BUDGETS) == (1.0,)
    assert in_reach(tiny(NARROWED), 16, reversed(BUDGETS)) == (0.5, 0.8, 1.0)
    with pytest.raises(ValueError, match="size must be a multiple of the patch, 4; got 18"):
        in_reach(tiny(), 18, BUDGETS)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_what_is_gathered_is_what_each_run_found(runs: int, names: int, budgets: int):
    values = iter(range(1000))
    found = [
        {f"n{i}": {str(1 / (b + 1)): float(next(values)) for b in range(budgets)} for i in range(names)}
        for _ in range(runs)
    ]
    table = gathered(found)
    assert [{name: {b: at[b][run] for b in at} for name, at in table.items()} for run in range(runs)] == found
    mean = averages(numbered(table))
    assert mean["n0"][1.0] == pytest.approx(sum(run["n0"]["1.0"] for run in found) / runs)
    pieces = [(run, name) for name in found[0] for run in range(runs)]
    assert joined(pieces, [{name: found[run][name]} for run, name in pieces]) == found


def test_what_does_not_belong_together_is_not_gathered():
    for runs in ([], [{"a": {"1.0": 0.5}}, {"b": {"1.0": 0.5}}], [{"a": {"1.0": 0.5}}, {"a": {"0.5": 0.5}}]):
        with pytest.raises(ValueError, match="values of the same names at the same budgets"):
            gathered(runs)
    with pytest.raises(ValueError, match=r"'y' found \['a'\] again"):
        joined([(0, "x"), (0, "y")], [{"a": 1}, {"a": 2}])
    with pytest.raises(ValueError, match="zip"):
        joined([(0, "x")], [])
    with pytest.raises(ValueError, match="could not convert"):
        numbered({"a": {"half": 1}})


def test_curves_over_budgets():
    found = over_budgets("t", "u", {"a": {1.0: [0.5]}}, levels={"b": [0.4]}, least=0.1)
    assert (found.title, found.upward, found.lines, found.levels) == ("t", "u", {"a": {1.0: [0.5]}}, {"b": [0.4]})
    assert "budget" in found.across
    assert (found.least, over_budgets("t", "u", {}).levels) == (0.1, {})


def test_areas_leave_out_what_is_out_of_reach_and_draw_from_the_seed():
    pictures = shapes(12)
    assert list(aurocs(tiny(classes=2), pictures, BUDGETS)) == ["1.0"]
    model = randomly_routed(tiny(NARROWED, classes=2, head="class_mean"))
    assert list(aurocs(model, pictures, BUDGETS)) == ["1.0", "0.8", "0.5"]
    torch.manual_seed(5)
    seeded = aurocs(model, pictures, (0.5,), seed=0)
    torch.manual_seed(0)
    assert aurocs(model, pictures, (0.5,)) == seeded
    assert all(0 <= value <= 1 for value in seeded.values())
    with pytest.raises(ValueError, match="need a network with a head"):
        aurocs(tiny(), pictures, (1.0,))
    with pytest.raises(ValueError, match="AUROC needs pictures of both classes"):
        aurocs(tiny(classes=2), pictures.subset(range(0, 12, 2)), (1.0,))


def test_trainings_are_kept_in_the_folder_or_vanish(tmp_path: Path):
    with keeping(tmp_path) as kept:
        assert kept == tmp_path
    with keeping(None) as kept:
        (kept / "a").touch()
        assert kept.is_dir()
    assert not kept.exists()
    with pytest.raises(KeyError), keeping(None) as kept:
        raise KeyError
    assert not kept.exists()


def test_networks_are_tuned_from_the_dense_one_and_never_twice(tmp_path: Path):
    tuning = OnShapes()
    dense = tune_dense(tiny(DENSE, classes=2, head="class_mean"), tuning, 3, tmp_path / "dense")
    assert equal(load_model(tmp_path / "dense"), dense)
    seen: list[Fit] = []

    def noted(how: Fit) -> Fit:
        seen.append(how)
        return how

    def start(model: ViT, images: torch.Tensor) -> Merged:
        assert model is dense
        assert images.shape == (6, 3, 16, 16)
        return Merged(model)

    taught = tune(Variant(start=start, how=noted), dense, tuning, 4, tmp_path / "merging")
    assert isinstance(taught, Merged)
    assert equal(load_model(tmp_path / "merging"), taught.model)
    assert not equal(taught.model, dense)
    wanted = Fit(epochs=1, batch=8, seed=4, precision="bf16", augment=Augment(flip=True), budgets=Sampled())
    assert seen == [wanted] == [tuning.how(4)]
    written = (tmp_path / "merging" / "fit.json").stat().st_mtime_ns
    again = tune(Variant(start=start), dense, tuning, 4, tmp_path / "merging")
    assert isinstance(again, Merged)
    assert equal(again.model, taught.model)
    assert (tmp_path / "merging" / "fit.json").stat().st_mtime_ns == written
    alone = Variant(start=lambda model, images: model, how=partial(replace, budgets=Fixed()), taught=False)
    longer = tune(alone, dense, tuning, 4, tmp_path / "longer")
    assert isinstance(longer, ViT)
    assert not equal(longer, dense)


def test_a_tuning_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="epochs must be at least 1; got 0"):
        OnShapes(epochs=0).how(0)
    with pytest.raises(ValueError, match="a limit must be at least 1 picture; got 0"):
        OnShapes(calibration=0).images()
    with pytest.raises(ValueError, match="a probe needs a head"):
        tune_dense(tiny(), OnShapes(), 0, Path("nowhere"))
    assert OnShapes().classes() == ("c0", "c1")


def test_other_starts_are_exact_at_full_budget_too():
    torch.manual_seed(0)
    dense, images = tiny(DENSE), torch.randn(6, 3, 16, 16)
    wanted = dense(images).tokens
    ways = (unrotated, as_published, perturbed, partial(routed, scores=("uniform",)))
    for start in ways:
        error = (start(dense, images)(images, budget=1.0).tokens - wanted).norm() / wanted.norm()
        assert error < 2e-5
        with pytest.raises(ValueError, match="one expert; got one with"):
            start(nest(dense, images), images)
    assert sizes(dense) == (24, 48, 4)
    assert as_published(dense, images).settings.nest.widths == (3, 6, 12, 24)
    assert perturbed(dense, images).settings.scores == ("loss", "perturbed")
    assert routed(dense, images, scores=("linear",)).settings.scores == ("linear",)
    with pytest.raises(ValueError, match="one expert; got one with 4"):
        sizes(tiny(NARROWED))


def test_a_pretrained_network_gets_a_head_where_classes_are_named():
    assert folded("dinov2-small").head is None
    headed = folded("dinov2-small", ("good", "bad"))
    assert headed.settings.labels == ("good", "bad")
    assert headed.head is not None
    assert not headed.head.linear.weight.any()


def met(whole: bool) -> Composed:
    score = Dot(8, 3)
    router = ComposedRouter(Pooled(score) if whole else score, [Softmax()], partial(top_k, k=1))
    return small(8, stack(8, 2, [Mixture(router, FeedForward(8, 16, 3))]))


def test_a_picture_that_decides_as_one_meets_one_expert():
    torch.manual_seed(0)
    images = torch.randn(5, 3, 28, 28)
    assert most_met(met(whole=True)(images).routings) == 1
    assert 1 < most_met(met(whole=False)(images).routings) <= 3
    with pytest.raises(ValueError, match="there is no decision to read"):
        most_met(())


def test_pictures_at_the_expert_of_their_class():
    torch.manual_seed(0)
    model, pictures = met(whole=True), shapes(12, classes=2, size=28)
    (routing,) = model(pictures.stacked()).routings
    assert isinstance(routing, Sparse)
    chosen = routing.index[:, 0, 0].tolist()
    for groups in ((0, 1), (2, 0)):
        hits = [groups[label] == expert for label, expert in zip(pictures.labels, chosen, strict=True)]
        assert at_their_expert(model, pictures, groups) == pytest.approx(sum(hits) / 12)
        assert at_their_expert(model, pictures, groups, most=4) == pytest.approx(sum(hits[:4]) / 4)
    with pytest.raises(ValueError, match="got 3 experts of classes and 2 classes"):
        at_their_expert(model, pictures, (0, 1, 2))


def test_folders_of_finished_trainings_keep_their_names():
    assert mone.FOLDERS == {"nested": "nested", "merging, tuned": "merging-tuned", "dense, tuned as long": "longer"}
    assert list(mone.FOLDERS) == list(mone.VARIANTS)
    shown = [name for names in mone_training.SHOWN.values() for name in names]
    assert sorted([mone_training.DEFAULT, *shown]) == sorted(mone_training.VARIANTS)
