import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny_vit import NARROWED, tiny

from nestor.data import Pictures
from nestor.measure.profile import print_profile, profile
from nestor.measure.record import Profile
from nestor.measure.score import auroc, balanced_accuracy
from nestor.models.merged import Merged
from nestor.models.uniform import Uniform, randomly_routed


def pictures(count: int = 6, labels: bool = True) -> Pictures:
    draw = np.random.default_rng(0)
    items = tuple(Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count))
    return Pictures(
        items=items,
        rows=tuple(range(count)),
        size=16,
        classes=("bad", "good") if labels else (),
        labels=tuple(i % 2 if labels else -1 for i in range(count)),
        names=tuple(str(i) for i in range(count)),
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # Threads cost more than they give on networks this small.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(_one_thread) -> Profile:
    torch.manual_seed(0)
    nested, dense = tiny(NARROWED, classes=2), tiny(classes=2)
    rivals = {"merged": Merged(dense), "one width": Uniform(nested), "random": randomly_routed(nested)}
    return profile(
        nested, pictures(), budgets=(1.0, 0.7, 0.4), rivals=rivals, dense=dense, batches=(1, 2), rounds=2, name="ours"
    )


def test_scores_are_those_of_the_predictions():
    model, data = tiny(NARROWED, classes=2), pictures()
    found = profile(model, data, budgets=(1.0, 0.6), batches=())
    images, labels = torch.stack([data[i][0] for i in range(6)]), torch.tensor(data.labels)
    for point in found.networks[0].points:
        logits = model(images, point.budget).logits
        predicted = logits.argmax(1)
        assert point.quality.accuracy == (predicted == labels).double().mean()
        assert point.quality.balanced_accuracy == balanced_accuracy(predicted, labels)
        assert point.quality.auroc == pytest.approx(auroc(logits.softmax(1)[:, 1], labels))
        assert point.quality.patch_cosine is None
    assert found.measure == "AUROC"


@pytest.mark.parametrize(("classes", "labels"), [(0, True), (2, False), (0, False)])
def test_without_head_or_labels_the_likeness_counts(classes, labels):
    model, dense = tiny(NARROWED, classes=classes), tiny(classes=classes)
    data = pictures(labels=labels)
    found = profile(model, data, budgets=(0.6,), dense=dense, batches=())
    images = torch.stack([data[i][0] for i in range(6)])
    cosine = torch.cosine_similarity(model(images, 0.6).tokens, dense(images).tokens, dim=-1)
    quality = found.networks[0].points[0].quality
    assert quality.class_cosine == pytest.approx(cosine[:, 0].mean().item(), abs=1e-5)
    assert quality.patch_cosine == pytest.approx(cosine[:, 1:].mean().item(), abs=1e-5)
    assert quality.accuracy is None
    assert found.dense.points[0].quality.class_cosine == pytest.approx(1)
    assert found.measure == "class token cosine"


def test_without_class_token_the_patches_count():
    model = tiny(NARROWED, prefix=0, head="mean")
    found = profile(model, pictures(), budgets=(0.6,), batches=())
    assert list(found.dense.points[0].quality.shown) == ["patch cosine"]


def test_every_network_has_its_points(measured):
    assert [network.name for network in measured.networks] == ["ours", "merged", "one width", "random"]
    assert [point.budget for point in measured.networks[0].points] == [1, 0.7, 0.4]
    # 0.4 is less than merging can do on so few tokens in two blocks.
    assert [point.budget for point in measured.networks[1].points] == [1, 0.7]
    assert measured.dense.points[0].ratio == 1
    for network in measured.networks:
        assert len({point.macs for point in network.points}) == len(network.points)
        assert all(point.ratio <= 1.03 * point.budget for point in network.points)


def test_speed_up_and_efficiency_follow_from_the_times(measured):
    assert measured.settings_timed == ((1, "float32"), (2, "float32"), (1, "bfloat16"), (2, "bfloat16"))
    dense = measured.dense.points[0]
    for network in measured.networks:
        for point in network.points:
            for latency in point.latencies:
                base = dense.latency(latency.batch, latency.precision)
                assert latency.speed_up == pytest.approx(base.timing.median_ms / latency.timing.median_ms)
                assert latency.efficiency == pytest.approx(latency.speed_up / (dense.macs / point.macs))
                assert latency.timing.rounds == 2


def test_json_and_back(measured):
    assert Profile.from_json(measured.to_json()) == measured


def test_json_that_is_no_profile_is_refused(measured):
    newer = measured.to_json().replace('"format": 1', '"format": 2')
    for text in ("", "{}", "[1]", newer, measured.to_json()[:-5], measured.to_json().replace('"macs"', '"max"')):
        with pytest.raises(ValueError, match="not a profile that can be read"):
            Profile.from_json(text)
    with pytest.raises(ValueError, match="its format is 2"):
        Profile.from_json(newer)


@pytest.mark.parametrize("width", [100, 160])
def test_the_table_is_aligned_and_complete(measured, width):
    out = io.StringIO()
    print_profile(measured, Console(file=out, width=width))
    text = out.getvalue()
    head = next(line for line in text.splitlines() if "GMACs" in line)
    rows = [line for line in text.splitlines() if "%" in line]
    assert len(rows) == 1 + 3 + 2 + 3 + 3
    ends = {row.index("%") for row in rows}
    assert ends == {head.index("of dense") + len("of dense") - 1}
    for name in ("dense", "ours", "merged", "one width", "random", "AUROC", "balanced accuracy", "bf16, batch 2"):
        assert name in text
    assert text.count("1.00x 1.00") >= 4
    assert "…" not in text


def test_nothing_of_the_callers_changes():
    model = tiny(NARROWED, classes=2)
    model.train()
    model.blocks[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    profile(
        model,
        pictures(),
        budgets=(0.6,),
        rivals={"random": randomly_routed(model)},
        rounds=1,
        batches=(1,),
        precisions=("float32",),
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert (model.training, model.blocks[0].training, model.blocks[1].training) == (True, False, True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_limit_keeps_the_shares_of_the_classes():
    assert profile(tiny(NARROWED, classes=2), pictures(10), budgets=(0.6,), limit=4, batches=()).pictures == 4


def test_bad_input_is_refused():
    model = tiny(NARROWED, classes=2)
    with pytest.raises(ValueError, match=r"budget must lie in .* got 0\.01"):
        profile(model, pictures(), budgets=(0.5, 0.01))
    with pytest.raises(ValueError, match="at least one budget"):
        profile(model, pictures(), budgets=())
    with pytest.raises(ValueError, match="precisions must be among float32, bfloat16; got int8"):
        profile(model, pictures(), precisions=("int8",))
    with pytest.raises(ValueError, match="batches must be at least 1"):
        profile(model, pictures(), batches=(0,))
    with pytest.raises(ValueError, match="names must differ"):
        profile(model, pictures(), rivals={"nested": Uniform(model)})
    with pytest.raises(ValueError, match="size must be a multiple of the patch, 4; got 18"):
        profile(model, pictures().at(18))
    with pytest.raises(ValueError, match="labels up to 2, and a head knows 2 classes"):
        profile(model, replace(pictures(3), labels=(0, 1, 2), classes=("a", "b", "c")))
