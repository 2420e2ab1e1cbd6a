"""Dense prediction: the packaged saliency head, and elastic networks that draw maps with any head."""

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_measure_cost import counted
from test_pretrained_packaged import pictures
from tiny_pictures import shapes
from tiny_vit import DENSE, NARROWED, SKIPPING, tiny
from torch import nn

from nestor.layers.maps import MapHead
from nestor.measure.maps import correlation, map_likeness
from nestor.models.mapped import Mapped
from nestor.models.merged import Merged
from nestor.models.pretrained import read, read_saliency
from nestor.models.pretrained.packaged import packaged_file
from nestor.models.pretrained.saliency import head_of
from nestor.models.pruned import Pruned
from nestor.models.saved import load_map, load_model, save_model
from nestor.models.uniform import Uniform
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest
from nestor.training import Distil, Fit, Fixed, fit
from nestor.training.losses import map_divergence

pytestmark = pytest.mark.usefixtures("one_thread")


def head(seed: int = 3) -> MapHead:
    torch.manual_seed(seed)
    made = MapHead((24, 8, 4))
    with torch.no_grad():
        made.last.weight.mul_(4)
    return made.eval()


WAYS = {
    "dense": lambda: tiny(DENSE),
    "nested": lambda: tiny(NARROWED),
    "skipping": lambda: tiny(SKIPPING),
    "merging": lambda: Merged(tiny(DENSE, prefix=2)),
    "pruning": lambda: Pruned(tiny(DENSE), stages=(1,)),
    "uniform": lambda: Uniform(tiny(NARROWED)),
}


def test_maps_are_those_of_the_packaged_network_itself_on_real_pictures():
    import onnxruntime

    plain = read("dinov2-small")
    mean, std = (torch.tensor(part)[:, None, None] for part in (plain.settings.mean, plain.settings.std))
    images = (pictures(2) - mean) / std
    session = onnxruntime.InferenceSession(str(packaged_file()), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        found = Mapped(fold(plain), read_saliency()).map(images)
    assert found.shape == (2, 224, 224)
    wanted = torch.from_numpy(np.asarray(expected)).squeeze(1)
    assert wanted.std() > 0.01
    assert (found - wanted).abs().max() < 1e-5


def test_a_map_is_read_cell_by_cell_and_stretched_to_the_picture():
    plain = MapHead((1,))
    assert plain.last.bias is not None
    with torch.no_grad():
        plain.last.weight.fill_(2)
        plain.last.bias.fill_(1)
        found = plain(torch.tensor([[[0.0], [1.0]]]), (1, 2), (1, 4))
    assert found.tolist() == [[[1.0, 1.5, 2.5, 3.0]]]
    with pytest.raises(ValueError, match=r"widths must be numbers of channels, at least one; got \(3, 0\)"):
        MapHead((3, 0))


@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
def test_patches_that_change_move_the_map_around_them_only(grid: tuple[int, int]):
    tokens, (rows, columns) = torch.randn(1, grid[0] * grid[1], 24), grid
    size = (4 * rows, 4 * columns)
    made = head()
    with torch.no_grad():
        before = made(tokens, grid, size)
        tokens[0, columns - 1] += 5
        moved = (made(tokens, grid, size) - before)[0] != 0
    assert before.shape == (1, *size)
    assert moved[:4, -4:].any()
    assert not moved[8:].any()
    assert not moved[:, :-8].any()


@pytest.mark.parametrize("way", WAYS)
def test_the_map_is_what_the_head_makes_of_the_backbones_tokens(way: str):
    backbone = WAYS[way]().eval()
    model, images = Mapped(backbone, head()), torch.randn(2, 3, 12, 20)
    prefix = backbone.settings.prefix
    for budget in (1.0, (1 + model.least_budget(15)) / 2 if way != "dense" else 1.0):
        with torch.no_grad():
            output = model(images, budget)
            tokens = backbone.run(images, model.plan(15, budget)[1:]).tokens
            wanted = model.head(tokens[:, prefix:], (3, 5), (12, 20))
        assert output.logits is not None
        assert torch.equal(output.logits, wanted)
        assert torch.equal(output.tokens, tokens)
        with torch.no_grad():
            assert torch.equal(model.map(images, budget), wanted.sigmoid())


def test_every_way_to_run_a_network_draws_its_map_at_full_budget():
    dense, images = tiny(DENSE), torch.randn(3, 3, 16, 16)
    made, nested = head(), nest(dense, torch.randn(8, 3, 16, 16), nest=NARROWED)
    with torch.no_grad():
        wanted = Mapped(dense, made).map(images)
        for backbone in (nested, Uniform(nested), Merged(dense), Pruned(dense, stages=(1,))):
            assert (Mapped(backbone, made).map(images) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_head_and_backbone_together_keep_the_budget(way: str):
    model = Mapped(WAYS[way](), head())
    full = model.full_macs(64)
    low = model.least_budget(64)
    for budget in (1.0, low, *((low + k * (1 - low) / 5) for k in range(1, 5))) if way != "dense" else (1.0,):
        plan = model.plan(64, budget)
        assert plan[0] == 64
        assert model.macs(plan) <= budget * full + 1
    assert model.macs(model.plan(64, 1.0)) == full
    with pytest.raises(ValueError, match=r"budget must lie in \[.*, 1\] for a head of [\d,]+ multiply-accumulates"):
        model.plan(64, low * 0.99)
    with pytest.raises(ValueError, match=r"got 1\.01"):
        model.plan(64, 1.01)


def test_macs_are_those_of_the_network_as_it_runs():
    model = Mapped(tiny(DENSE), head())
    assert model.full_macs(24) == counted(model, torch.randn(1, 3, 16, 24), 1.0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="must read tokens as wide as the backbone's, 24; got 32"):
        Mapped(tiny(), MapHead((32, 4)))
    with pytest.raises(ValueError, match="without a head for classes; got one for 3"):
        Mapped(tiny(classes=3), head())
    with pytest.raises(ValueError, match="multiple"):
        Mapped(tiny(), head()).map(torch.randn(1, 3, 15, 16))


@pytest.mark.parametrize("way", ["nested", "merging", "uniform"])
def test_what_is_saved_is_the_network_inside_with_its_head(way: str, tmp_path: Path):
    model = Mapped(WAYS[way]().eval(), head())
    save_model(model, tmp_path)
    again = load_map(tmp_path)
    assert again.settings == model.settings
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.map(images), Mapped(model.inside, model.head).map(images))
    with pytest.raises(ValueError, match="must be of kind 'vit' to be loaded as a network; got 'map'"):
        load_model(tmp_path)


def test_the_divergence_of_maps_is_that_of_each_pixels_chance():
    ours, theirs = torch.zeros(2, 3, 4), torch.full((2, 3, 4), log(3.0))
    wanted = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    assert map_divergence(ours, theirs, 1.0).item() == pytest.approx(wanted, rel=1e-5)
    assert map_divergence(theirs, theirs, 2.0).item() == pytest.approx(0, abs=1e-7)
    softened = map_divergence(ours, 2 * theirs, 2.0).item()
    assert softened == pytest.approx(4 * wanted, rel=1e-5)


@pytest.mark.parametrize("way", ["nested", "merging", "pruning", "uniform"])
def test_a_network_learns_from_the_maps_of_another_through_a_head_that_stays(way: str, tmp_path: Path):
    torch.manual_seed(7)
    backbone = WAYS[way]()
    prefix = backbone.settings.prefix
    made = head().requires_grad_(False)
    teacher = Mapped(tiny(DENSE, prefix=prefix), made)
    model, photographs = Mapped(backbone, made), shapes(12, labelled=False)
    budget = 0.9 if way != "uniform" else model.least_budget(16) + 0.01
    how = Fit(
        epochs=12, batch=6, rate=0.03, budgets=Fixed(budget=budget), loss=Distil(prefix=0, patches=0, temperature=1)
    )
    learnt = fit(model, photographs, how, teacher=teacher, out=tmp_path, cpu=True)
    before, after = (
        map_likeness({"it": each}, teacher, photographs, (budget,))["it"][budget] for each in (model, learnt)
    )
    assert after.difference < 0.8 * before.difference
    assert all(torch.equal(tensor, learnt.head.state_dict()[name]) for name, tensor in made.state_dict().items())
    kept = load_map(tmp_path)
    assert all(
        torch.equal(tensor, learnt.inside.state_dict()[name]) for name, tensor in kept.inside.state_dict().items()
    )


def test_training_without_a_teacher_or_by_labels_is_refused():
    model = Mapped(tiny(NARROWED), head())
    with pytest.raises(ValueError, match="without a teacher the network needs a head"):
        fit(model, shapes(), cpu=True)
    with pytest.raises(ValueError, match="no part of the loss applies"):
        fit(model, shapes(), Fit(loss=Distil(logits=0, prefix=0, patches=0)), teacher=model, cpu=True)
    with pytest.raises(ValueError, match="validation needs a network with a head"):
        fit(model, shapes(), teacher=model, validate=shapes(), cpu=True)


def test_likeness_of_maps_is_numpys_and_leaves_out_what_cannot_be_reached():
    full, nested = Mapped(tiny(DENSE), head()), Mapped(tiny(NARROWED), head())
    photographs = shapes(5)
    images = torch.stack([photographs[i][0] for i in range(5)])
    found = map_likeness({"nested": nested, "itself": full}, full, photographs, (1.0, 0.9, 0.01), batch=2)
    assert found["nested"].keys() == {1.0, 0.9}
    assert found["itself"][1.0].correlation == pytest.approx(1)
    assert found["itself"][1.0].difference == 0
    with torch.no_grad():
        ours, theirs = nested.map(images, 0.9).numpy(), full.map(images).numpy()
    pairs = zip(ours, theirs, strict=True)
    wanted = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])
    at = found["nested"][0.9]
    assert at.correlation == pytest.approx(wanted, abs=1e-5)
    assert at.difference == pytest.approx(np.abs(ours - theirs).mean(), rel=1e-5)
    assert at.spent == nested.macs(nested.plan(16, 0.9)) / nested.full_macs(16) <= 0.9
    assert correlation(torch.ones(1, 2, 2), torch.rand(1, 2, 2)).tolist() == [0]


def graph(form: str = "norm", stride: int = 2):
    """A graph of a backbone that adds a bias, one doubling and a map."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    sizes = {"backbone.bias": (3,), "up": (3, 2, 4, 4), "up_bias": (2,), "scale": (2,), "shift": (2,), "mean": (2,)}
    sizes |= {"variance": (2,), "last": (1, 2, 1, 1), "last_bias": (1,)}
    values = {name: rng.random(size).astype(np.float32) for name, size in sizes.items()}
    integers = {"start": [1], "end": [5], "axis": [1], "grid": [1, 3, 2, 2], "whole": [1, 1, 8, 8]}
    values |= {name: np.array(value, dtype=np.int64) for name, value in integers.items()}
    doubling: dict[str, Any] = {"kernel_shape": [4, 4], "strides": [stride, stride], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Add", ["x", "backbone.bias"], ["t"]),
        helper.make_node("Slice", ["t", "start", "end", "axis"], ["s"]),
        helper.make_node("Transpose", ["s"], ["p"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["p", "grid"], ["g"]),
        helper.make_node("ConvTranspose", ["g", "up", "up_bias"], ["u"], **doubling),
        helper.make_node("BatchNormalization", ["u", "scale", "shift", "mean", "variance"], ["n"], epsilon=1e-3)
        if form == "norm"
        else helper.make_node("Neg", ["u"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "last", "last_bias"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Resize", ["c", "", "", "whole"], ["z"], mode="linear"),
        helper.make_node("Sigmoid", ["z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    stored = [numpy_helper.from_array(value, name) for name, value in values.items()]
    return helper.make_graph(nodes, "small", ends[:1], ends[1:], stored), values


def test_a_head_is_found_at_the_end_of_a_graph_with_its_norms_folded_in():
    small, values = graph()
    found = head_of(small)
    assert found.widths == (3, 2)
    x = torch.randn(1, 5, 3)
    w = {name: torch.from_numpy(value) for name, value in values.items()}
    cells = (x + w["backbone.bias"])[:, 1:].transpose(1, 2).reshape(1, 3, 2, 2)
    up = nn.functional.conv_transpose2d(cells, w["up"], w["up_bias"], 2, 1)
    normal = nn.functional.batch_norm(up, w["mean"], w["variance"], w["scale"], w["shift"], eps=1e-3).relu()
    wanted = nn.functional.conv2d(normal, w["last"], w["last_bias"])
    wanted = nn.functional.interpolate(wanted, size=(8, 8), mode="bilinear")
    with torch.no_grad():
        given = found((x + w["backbone.bias"])[:, 1:], (2, 2), (8, 8))
    assert (given - wanted[:, 0]).abs().max() < 1e-5


def test_a_graph_that_ends_otherwise_is_refused():
    with pytest.raises(
        ValueError, match=r"must end in doublings .*; got Slice Transpose Reshape ConvTranspose Neg Relu"
    ):
        head_of(graph("negated")[0])
    with pytest.raises(ValueError, match=r"ConvTranspose must have strides \[2, 2\]; got \[1, 1\]"):
        head_of(graph(stride=1)[0])
    small, _ = graph()
    small.node[0].input[1] = "bias"
    with pytest.raises(ValueError, match="behind a backbone; got nothing"):
        head_of(small)
