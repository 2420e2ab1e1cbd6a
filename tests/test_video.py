"""Laws of the elastic video transformer."""

import math
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NESTS, naive_tokens, small
from test_clips import arrow
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nestor import store
from nestor.data import Augment, Clips
from nestor.models.saved import load_model, load_video, save_model
from nestor.models.video import VideoSettings, VideoViT
from nestor.models.vit import ViTSettings
from nestor.surgery.inflate import inflate
from nestor.training import Distil, Fit, Fixed, fit, predict
from nestor.training.run import parameter_groups
from nestor.types import Stored

pytestmark = pytest.mark.usefixtures("one_thread")

NESTED = ("published", "default", "heads", "skip", "own")


def space(name: str = "default", **changes) -> ViTSettings:
    scores = ("trailing", "linear") if NESTS[name].experts > 1 else ()
    return ViTSettings(nest=NESTS[name], depth=2, patch=4, grid=(4, 4), nominal=16, scores=scores, **changes)


def video(name: str = "default", seed: int = 0, prefix: int = 1, **changes) -> VideoViT:
    """Width 24, two spatial and two temporal blocks, every parameter random, alpha 0.3."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {"frames": 6, "tubelet": 2, "classes": 3} | changes
    model = VideoViT(VideoSettings(space=space(name, prefix=prefix), **fields))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim:
                parameter.normal_(std=0.5 / max(1, parameter.shape[-1]) ** 0.5)
            elif key.endswith("alpha"):
                parameter.fill_(0.3)
    return model


def clips(count: int = 2, frames: int = 6, side: int = 16) -> torch.Tensor:
    return torch.randn(count, frames, 3, side, side, generator=torch.Generator().manual_seed(1))


def naive(model: VideoViT, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, 1 + indices, D): index after index through the naive picture network, then a plain transformer."""
    s = model.settings
    rows = []
    for b, clip in enumerate(x):
        seen = []
        for i in range(s.indices):
            tube = torch.cat([clip[i * s.tubelet + j] for j in range(s.tubelet)])
            tokens = naive_tokens(model.space, tube.unsqueeze(0), index[b * s.indices + i : b * s.indices + i + 1])
            seen.append(tokens[0, 0] + model.position[i])
        rows.append(torch.stack([model.prefix[0], *seen]))
    y = torch.stack(rows)
    D, heads = y.shape[-1], s.nest.heads[-1]

    def norm(y):
        return y / (y.square().mean(-1, keepdim=True) + s.space.eps).sqrt()

    for block in model.blocks:
        key, value, query = F.linear(norm(y), block.attention.inward, block.attention.inward_bias[0]).split(D, -1)
        answers = []
        for part in range(heads):
            mine = slice(part * D // heads, (part + 1) * D // heads)
            scores = query[..., mine] @ key[..., mine].transpose(1, 2) / (D // heads) ** 0.5
            answers.append(scores.softmax(-1) @ value[..., mine])
        y = y + F.linear(torch.cat(answers, -1), block.attention.outward, block.attention.outward_bias[0])
        act = F.gelu(F.linear(norm(y), block.mlp.inward, block.mlp.inward_bias[0]))
        y = y + F.linear(act, block.mlp.outward, block.mlp.outward_bias[0])
    return F.linear(norm(y), model.readout.weight, model.readout.bias[0])


@pytest.mark.parametrize("tubelet", [1, 2, 3])
@pytest.mark.parametrize("name", ["dense", *NESTED])
def test_folded_path_equals_the_naive_one_gradients_included(name: str, tubelet: int):
    model = video(name, tubelet=tubelet)
    x = clips()
    least = model.least_budget(16)
    for budget in {least, (1 + least) / 2, 1.0}:
        output = model(x, budget=budget)
        routed = 2 * model.settings.indices
        index = output.routings[0].index.squeeze(-1) if output.routings else torch.zeros(routed, 16, dtype=torch.long)
        expected = naive(model, x, index)
        torch.testing.assert_close(output.tokens, expected, rtol=1e-4, atol=1e-5)
        assert model.head is not None
        torch.testing.assert_close(output.logits, model.head.linear(expected[:, 0]), rtol=1e-4, atol=1e-5)
        parameters = [p for key, p in model.named_parameters() if not key.startswith("head.")]
        probe = torch.randn_like(expected)
        fast, slow = (
            torch.autograd.grad((tokens * probe).sum(), parameters, allow_unused=True, materialize_grads=True)
            for tokens in (output.tokens, expected)
        )
        for ours, theirs in zip(fast, slow, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4)


def test_the_embedding_is_a_convolution_over_time_rows_and_columns():
    model = video("dense", tubelet=3)
    x, embed = clips(), model.space.embed
    kernel = embed.weight.unflatten(1, (3, 3, 4, 4)).transpose(1, 2)
    wanted = F.conv3d(x.transpose(1, 2), kernel, embed.bias, stride=(3, 4, 4)).permute(0, 2, 3, 4, 1)
    wanted = (wanted + embed.position).flatten(2, 3).flatten(0, 1)
    torch.testing.assert_close(embed(model.pictures(x))[:, 1:], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NESTED)
def test_full_budget_without_gate_equals_the_dense_network(name: str):
    nested, dense = video(name), video("dense")
    state = nested.state_dict()
    own = {}
    for key in dense.state_dict():
        source = nested.space.readout.map(NESTS[name].experts - 1) if key == "space.readout.weight" else state[key]
        per_expert = key.startswith("space.") and key.endswith(("ward_bias", "readout.bias"))
        own[key] = source[-1:] if per_expert else source
    dense.load_state_dict(own)
    for block in nested.space.blocks:
        assert block.mlp.alpha is not None
        block.mlp.alpha.data.zero_()
    ours, theirs = nested(clips(), budget=1.0), dense(clips())
    torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NESTED)
def test_every_index_has_exactly_the_planned_counts(name: str):
    model = video(name)
    for budget in (model.least_budget(16), 0.6, 0.85, 1.0):
        counts = model.plan(16, budget)
        (routing,) = model(clips(3), budget=budget).routings
        assert routing.index.shape == (9, 16, 1)
        for expert, count in enumerate(counts):
            assert ((routing.index == expert).sum((1, 2)) == count).all()


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(NESTED),
    st.sampled_from([(2, 1), (8, 2), (9, 3), (4, 4)]),
    st.integers(1, 200),
    st.integers(1, 4),
    st.floats(0, 1),
)
def test_the_budget_is_never_exceeded_and_missed_by_less_than_a_token(name, time, patches, depth, place):
    frames, tubelet = time
    with torch.device("meta"):
        model = VideoViT(VideoSettings(space=space(name), frames=frames, tubelet=tubelet, depth=depth, classes=5))
    full, low = model.full_macs(patches), model.least_budget(patches)
    budget = low + place * (1 - low)
    counts = model.plan(patches, budget)
    token = full - model.full_macs(patches - 1)
    assert sum(counts) == patches
    assert budget * full - token < model.macs(counts) <= math.floor(budget * full + 1e-6)


@contextmanager
def counting():
    vector = {torch.ops.aten.mv: lambda matrix, *_, **__: 2 * math.prod(matrix)}
    with (
        FlopCounterMode(display=False, custom_mapping=vector) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        yield counter


@pytest.mark.parametrize("head", ["class", "mean", "class_mean", "attention"])
@pytest.mark.parametrize("name", ["dense", *NESTED])
def test_macs_are_those_of_the_network_as_it_runs(name: str, head: str):
    model = video(name, head=head, prefix=2)
    for budget in {1.0, model.least_budget(24), (1 + model.least_budget(24)) / 2}:
        with counting() as counter:
            model(torch.randn(1, 6, 3, 16, 24), budget)
        assert model.macs(model.plan(24, budget)) == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


@pytest.mark.parametrize("head", ["class", "mean", "class_mean", "attention"])
def test_every_parameter_gets_a_gradient(head: str):
    model = video("own", head=head)
    output = model(clips(), budget=0.7)
    assert output.logits is not None
    (output.logits.square().sum() + output.tokens.square().sum()).backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # Of the last spatial block only the class token is read, and that is never narrow and has no gate.
    assert missing == {"space.blocks.1.mlp.alpha", "space.blocks.1.mlp.outward_own"}


def test_the_order_of_frames_tells_and_clips_do_not_touch_each_other():
    model = video().eval()
    x = clips(3)
    together = model(x, budget=0.7).tokens
    alone = torch.cat([model(one.unsqueeze(0), budget=0.7).tokens for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    backwards = model(x.flip(1), budget=0.7).tokens
    assert (backwards[:, 0] - together[:, 0]).abs().max() > 0.01


def test_budget_is_set_between_calls_or_given_with_a_call():
    model = video()
    model.budget = 0.6
    low = model(clips()).logits
    assert torch.equal(model(clips(), budget=0.6).logits, low)
    model.budget = 1.0
    assert not torch.allclose(model(clips()).logits, low)
    assert model.plan(16, 1.0) == (0, 0, 0, 16)
    assert video("dense").plan(16, 1 - 1e-12) == (16,)


def test_other_picture_sizes_and_half_precision_run():
    model = video().eval()
    assert model(torch.randn(2, 6, 3, 12, 24), budget=0.7).tokens.shape == (2, 4, 24)
    with torch.no_grad():
        single = model(clips(), budget=1.0).logits
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(clips(), budget=1.0).logits
        half = model.to(torch.bfloat16)(clips().bfloat16(), budget=1.0).logits
    assert half.dtype == torch.bfloat16
    for other in (cast, half):
        assert (other.float() - single).norm() / single.norm() < 0.05


@pytest.mark.parametrize("how", ["central", "mean"])
@pytest.mark.parametrize("name", ["dense", "default"])
def test_an_inflated_network_sees_a_still_clip_as_the_picture_network_sees_the_picture(name: str, how):
    picture = small(name, prefix=2)
    model = inflate(picture, frames=6, tubelet=3, labels=("a", "b"), how=how)
    assert model.settings.labels == ("a", "b")
    still = torch.randn(2, 3, 16, 16)
    x = still.unsqueeze(1).expand(-1, 6, -1, -1, -1)
    counts = picture.plan(16, 0.6 if name == "default" else 1.0)
    ours = model.space.run(model.pictures(x), counts).tokens
    theirs = picture.run(still, counts).tokens.repeat_interleave(2, 0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    changed = x.clone()
    changed[:, [0, 2, 3, 5]] = torch.randn(2, 4, 3, 16, 16)
    moved = model.space.run(model.pictures(changed), counts).tokens
    assert torch.allclose(moved, ours, atol=1e-5) == (how == "central")
    assert model(x, budget=1.0).logits.shape == (2, 2)


@pytest.mark.parametrize("name", ["dense", "own", "skip"])
def test_round_trip_bit_for_bit(tmp_path: Path, name: str):
    model = video(name, labels=("a", "b", "c")).eval()
    save_model(model, tmp_path)
    again = load_video(tmp_path)
    assert again.settings == model.settings
    assert again.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    budget = model.least_budget(16)
    assert torch.equal(again(clips(), budget).logits, model(clips(), budget).logits)
    with pytest.raises(ValueError, match=r"must be of kind 'vit' to be loaded as a network; got 'video'"):
        load_model(tmp_path)
    unknown = asdict(model.settings)
    unknown["space"]["shutter"] = 3
    store.save(Stored(kind="video", settings=unknown, tensors=model.state_dict()), tmp_path)
    with pytest.raises(ValueError, match=r"settings\.space in .* has unknown fields: shutter"):
        load_video(tmp_path)


def moving(count: int = 12, **changes) -> Clips:
    fields: dict[str, Any] = {"frames": 4, "size": 16} | changes
    return Clips(pictures=arrow(count), **fields)


def student(**changes) -> VideoViT:
    return video(**({"frames": 4, "classes": 8, "labels": moving().classes} | changes))


def test_training_lowers_the_loss_and_keeps_the_model(tmp_path: Path):
    model, data = student(), moving()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = fit(model, data, Fit(epochs=8, batch=6, rate=0.03, budgets=Fixed(budget=0.7)), out=tmp_path, cpu=True)
    assert isinstance(trained, VideoViT)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for budget in (0.7, 1.0):
        logits, labels = predict(trained, data, budget)
        start, _ = predict(model, data, budget)
        assert F.cross_entropy(logits, labels) < 0.9 * F.cross_entropy(start, labels)
    stored = load_video(tmp_path)
    assert torch.equal(predict(stored, data, 0.7)[0], predict(trained, data, 0.7)[0])


def test_a_teacher_teaches_the_temporal_tokens():
    teacher = student(name="dense", seed=3)
    taught = fit(student(), moving(), Fit(epochs=3, batch=6, rate=0.01), teacher=teacher, cpu=True)
    wanted = teacher(clips(frames=4)).tokens
    cosine = [F.cosine_similarity(m(clips(frames=4)).tokens, wanted, dim=-1).mean() for m in (student(), taught)]
    assert cosine[1] > cosine[0]


def test_router_gates_and_positions_are_told_apart_by_their_rates():
    model = student()
    groups = parameter_groups(model, Fit(decay=0.1, router_rate=7, head_rate=3))
    names = [name for name, _ in model.named_parameters()]
    same: Any = [group["scale"] for group in parameter_groups(model, Fit(router_rate=1, head_rate=1))]
    plain = dict(zip(names, same, strict=True))
    for (name, parameter), group in zip(model.named_parameters(), groups, strict=True):
        factor = 7 if ".router." in name or name.endswith("alpha") else 3 if name.startswith("head.") else 1
        assert group["scale"] == pytest.approx(factor * plain[name]), name
        decays = parameter.ndim > 1 and not name.endswith(("bias", "prefix", "position"))
        assert (group["weight_decay"] != 0) == decays, name


def test_bad_clips_and_budgets_are_refused_with_the_repair():
    model = video()
    for shape in ((2, 5, 3, 16, 16), (2, 1, 3, 16, 16), (2, 6, 3, 16, 18), (2, 6, 1, 16, 16), (6, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"clips must be \(B, 6, 3, H, W\), 6 frames with H and W multiples of"):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"clips must be .*got \(0, 6, 3, 16, 16\)"):
        model(torch.zeros(0, 6, 3, 16, 16))
    with pytest.raises(
        ValueError, match=r"budget must lie in \[0\.\d+, 1\] .* 16 patches and 3 indices; got 0.05\. Add"
    ):
        model.budget = 0.05
    with pytest.raises(ValueError, match="budget must lie in"):
        model(clips(), budget=1.5)
    with pytest.raises(ValueError, match="budget must lie in"):
        video("dense").plan(16, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 7}, "a multiple of the tubelet; got frames 7 and tubelet 2"),
        ({"frames": 1, "tubelet": 1}, "needs two frames or more, .* got frames 1"),
        ({"tubelet": 0}, "got frames 8 and tubelet 0"),
        ({"depth": 0}, "at least 1 temporal block; got 0"),
        ({"space": space(prefix=0)}, "needs a class token; got prefix 0"),
        ({"space": space(classes=4)}, "got 3 channels and 4 classes"),
        ({"space": space(channels=1)}, "got 1 channels and 0 classes"),
    ],
)
def test_bad_settings_are_refused_with_the_repair(changes, message: str):
    with pytest.raises(ValueError, match=message):
        VideoSettings(**({"space": space()} | changes))


def test_what_cannot_be_inflated_or_trained_is_refused():
    with pytest.raises(ValueError, match="how must be central or mean; got 'first'"):
        inflate(small(), how="first")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="needs a class token; got prefix 0"):
        inflate(small(prefix=0, head="mean"))
    with pytest.raises(ValueError, match=r"clips must be \(B, 4, 3, H, W\).*got \(1, 5, 3, 16, 16\)"):
        fit(student(), moving(frames=5), cpu=True)
    with pytest.raises(ValueError, match=r"clips must be \(B, 4, 3, H, W\).*got \(1, 3, 28, 28\)"):
        fit(student(), arrow(), cpu=True)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\).*got \(1, 4, 3, 16, 16\)"):
        fit(small(), moving(), cpu=True)
    with pytest.raises(ValueError, match=r"a mirrored clip moves another way\. Set augment=None"):
        fit(student(), moving(), Fit(augment=Augment(flip=True)), cpu=True)
    with pytest.raises(ValueError, match="the head has 3 classes and the pictures 8"):
        fit(student(classes=3, labels=("a", "b", "c")), moving(), cpu=True)
    with pytest.raises(ValueError, match=r"got \(1, 5, 3, 16, 16\)"):
        fit(student(), moving(), validate=moving(frames=5), cpu=True)
    with pytest.raises(ValueError, match=r"clips must be \(B, 6, 3, H, W\).*got \(1, 4, 3, 16, 16\)"):
        fit(student(), moving(), Fit(loss=Distil(prefix=0, patches=0)), teacher=student(frames=6), cpu=True)
    other = student(tubelet=4)
    with pytest.raises(
        ValueError, match=r"the teacher has patches on a picture \(1, 4, 4\) and the network \(2, 4, 4\)"
    ):
        fit(student(), moving(), teacher=other, cpu=True)
    assert replace(moving(), seed=1).identity != moving().identity
