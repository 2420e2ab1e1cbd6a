"""The parts of training: schedules, losses, prediction and probes, each against hand values or another computation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tiny_pictures import shapes
from tiny_vit import NARROWED, tiny
from torch.nn import functional as F

from nestor.models.vit import ViT
from nestor.training import Chosen, Distil, Fit, Fixed, InTurn, Leaning, Sampled, Sandwich, features, predict, probe
from nestor.training.checks import label_weight
from nestor.training.losses import PARTS, Objective, divergence, misalignment, target
from nestor.training.probe import logistic
from nestor.training.run import parameter_groups
from nestor.training.schedule import batches, rate_factor
from nestor.training.settings import described

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sampled_budgets_are_uniform_beside_the_full_network():
    budgets = Sampled(low=0.4, high=0.8, full=0.25)
    drawn = [budgets.draw(0, step, 0.2) for step in range(4000)]
    assert sum(budget == 1 for budget in drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    rest = np.array([budget for budget in drawn if budget < 1])
    assert 0.4 <= rest.min() < 0.42
    assert 0.78 < rest.max() <= 0.8
    assert np.histogram(rest, 4, (0.4, 0.8))[0] / len(rest) == pytest.approx([0.25] * 4, abs=0.03)
    assert drawn == [budgets.draw(0, step, 0.2) for step in range(4000)]
    assert drawn != [budgets.draw(1, step, 0.2) for step in range(4000)]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(0, 10**6),
    st.sampled_from(
        [
            Sampled(low=0.05, high=0.5),
            Leaning(low=0.01),
            Chosen(),
            InTurn(budgets=(0.01, 0.6, 0.3)),
            Sandwich(between=1),
        ]
    ),
)
def test_every_draw_can_be_run(seed: int, step: int, budgets: Sampled | Leaning | Chosen | InTurn | Sandwich):
    model = tiny(NARROWED)
    least = model.least_budget(16)
    for budget in (budgets.draw(seed, step, least), *budgets.shown(least)):
        assert model.macs(model.plan(16, budget)) <= budget * model.full_macs(16)
    assert list(budgets.shown(least)) == sorted(budgets.shown(least), reverse=True)


def test_a_dense_network_is_always_trained_in_full():
    least = tiny().least_budget(16)
    assert {Sampled().draw(0, step, least) for step in range(50)} == {1.0}
    assert Sampled().shown(least) == (1.0,)
    assert min(Sampled().shown(0.843)) > 0.843


def test_the_published_budgets_and_a_fixed_one():
    drawn = {Chosen().draw(0, step, 0.1) for step in range(300)}
    assert drawn == {0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95}
    assert Chosen().shown(0.1) == (0.95, 0.55, 0.15)
    assert {Fixed(budget=0.7).draw(0, step, 0.1) for step in range(9)} == {0.7}
    assert Fixed().shown(0.1) == (1.0,)


def test_budgets_in_turn():
    budgets = InTurn(budgets=(0.1, 0.5, 1.0))
    assert [budgets.draw(7, step, 0.2) for step in range(4)] == pytest.approx([0.2, 0.5, 1.0, 0.2])
    assert budgets.shown(0.2) == pytest.approx((1.0, 0.5, 0.2))


def test_leaning_budgets_are_rarer_the_higher_they_are():
    for power in (1.0, 3.0):
        draws = [Leaning(low=0.2, power=power).draw(1, step, 0.1) for step in range(4000)]
        assert min(draws) >= 0.2
        assert sum(draws) / len(draws) == pytest.approx(0.2 + 0.8 / (power + 1), abs=0.02)


def test_a_sandwich_has_two_slices_and_what_lies_between():
    budgets = Sandwich(between=2)
    drawn = np.array([budgets.draw(0, step, 0.2) for step in range(4000)]).reshape(-1, 4)
    assert (drawn[:, 0] == 1).all()
    assert drawn[:, 1] == pytest.approx(0.2)
    assert np.histogram(drawn[:, 2:], 4, (0.195, 1.005))[0] / 2000 == pytest.approx([0.25] * 4, abs=0.03)
    assert budgets.draw(1, 2, 0.2) != budgets.draw(0, 2, 0.2)
    assert [Sandwich(between=0).draw(0, step, 0.5) for step in range(4)] == pytest.approx([1, 0.5, 1, 0.5])
    assert budgets.shown(0.2) == pytest.approx((1.0, 0.6, 0.2))
    assert {budgets.draw(0, step, 1.0) for step in range(40)} == {1.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InTurn(budgets=(0.5, 1.5)), r"training budgets must lie in \(0, 1\]; got \(0.5, 1.5\)"),
        (lambda: Leaning(power=0.5), "a power of at least 1; got 0.5"),
        (lambda: Leaning(low=0.0), r"training budgets must lie in \(0, 1\]; got \(0.0,\)"),
        (lambda: Sandwich(between=-1), "between must be at least 0; got -1"),
        (lambda: Fixed(budget=0), r"training budgets must lie in \(0, 1\]; got \(0,\)"),
        (lambda: Chosen(budgets=()), r"training budgets must lie in \(0, 1\]; got none"),
        (lambda: Sampled(low=0.2, high=1.2), r"training budgets must lie in \(0, 1\]; got \(0.2, 1.2\)"),
        (lambda: Sampled(low=0.8, high=0.5), r"need low <= high .*; got low 0.8, high 0.5, full 0.1"),
        (lambda: Sampled(full=-1), r"full in \[0, 1\]; got .* full -1"),
        (lambda: Fit(epochs=0), "epochs must be at least 1; got 0"),
        (lambda: Fit(rate=float("nan")), "rate must be above 0; got nan"),
        (lambda: Fit(decay=-0.1), "decay must be at least 0; got -0.1"),
        (lambda: Fit(warmup=1), r"warmup must be in \[0, 1\); got 1"),
        (lambda: Fit(precision="fp16"), "precision must be one of no, bf16; got 'fp16'"),
        (lambda: Distil(logits=-1), "logits must be at least 0; got -1. Change it"),
        (lambda: Distil(temperature=0), "temperature must be above 0; got 0"),
    ],
)
def test_settings_out_of_range(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_rate_rises_and_falls():
    factors = [rate_factor(step, 20, 0.2) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rate_factor(12, 20, 0.2) == pytest.approx(0.01 + 0.99 / 2)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert 0.01 < factors[-1] < 0.03
    assert rate_factor(0, 1, 0.0) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), st.integers(1, 4), st.data())
def test_the_parts_of_all_processes_are_the_batches_of_one(count, seed, epoch, share, parts, data):
    batch = share * parts
    whole = list(batches(count, seed=seed, epoch=epoch, batch=batch, start=0, part=0, parts=1))
    assert len(whole) == count // batch
    shown = [index for indices in whole for index in indices]
    assert len(set(shown)) == len(shown)
    assert set(shown) <= set(range(count))
    start = data.draw(st.integers(0, len(whole)))
    divided = [
        list(batches(count, seed=seed, epoch=epoch, batch=batch, start=start, part=p, parts=parts))
        for p in range(parts)
    ]
    joined = [[index for indices in step for index in indices] for step in zip(*divided, strict=True)]
    assert joined == whole[start:]


def test_every_epoch_has_its_own_order():
    first, second = (list(batches(64, seed=0, epoch=e, batch=64, start=0, part=0, parts=1)) for e in (0, 1))
    assert first != second


def test_settings_as_json_bear_the_names_of_their_types():
    found = described(Fit(budgets=Fixed(budget=0.5), loss=Distil(patches=0)))
    assert isinstance(found, dict)
    assert found["budgets"] == {"type": "Fixed", "budget": 0.5}
    assert found["loss"]["patches"] == 0
    assert found["augment"] is None


def test_the_divergence_by_hand():
    ours, theirs = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    p = torch.tensor([1.0, 0.0]).softmax(0)
    expected = 4 * ((p[0] * (p[0] / p[1]).log()) + (p[1] * (p[1] / p[0]).log()))
    assert divergence(ours, theirs, 2.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert divergence(theirs, theirs, 2.0).item() == 0


def test_the_misalignment_by_hand():
    ours = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0]]])
    theirs = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]])
    assert misalignment(ours, theirs).item() == pytest.approx((0 + 1 + 2 + 1 - 2**-0.5) / 4, abs=1e-6)


def objective(model: ViT, loss: Distil, *, sandwich: bool = False) -> Objective:
    return Objective(model, loss, smoothing=0.1, labels=1.0 if loss.labels is None else loss.labels, sandwich=sandwich)


def test_the_loss_of_a_step_is_the_weighted_sum_of_its_parts():
    model, teacher = (tiny(NARROWED, classes=3, prefix=2) for _ in range(2))
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    loss = Distil(labels=2, logits=3, temperature=4, prefix=5, patches=7)
    taught = target(teacher(images), loss)
    total, parts = objective(model, loss)(images, labels, 0.5, taught.logits, taught.tokens)
    ours, theirs = model(images, budget=0.5), teacher(images)
    assert ours.logits is not None
    assert theirs.logits is not None
    cosines = F.cosine_similarity(ours.tokens, theirs.tokens, dim=-1)
    expected = [
        2 * F.cross_entropy(ours.logits, labels, label_smoothing=0.1),
        3 * divergence(ours.logits, theirs.logits, 4),
        5 * (1 - cosines[:, :2].mean()),
        7 * (1 - cosines[:, 2:].mean()),
        torch.zeros(()),
    ]
    assert PARTS == ("labels", "logits", "prefix", "patches", "balance")
    torch.testing.assert_close(parts, torch.stack(expected).detach())
    torch.testing.assert_close(total, torch.stack(expected).sum())
    assert taught.logits is not None
    assert not taught.logits.requires_grad
    _, few = objective(model, Distil(labels=0, prefix=0))(images, labels, 0.5, taught.logits, taught.tokens)
    assert few[[0, 2]].tolist() == [0, 0]
    assert (few[[1, 3]] > 0).all()


def test_a_sandwich_is_the_full_network_and_its_copy_at_less():
    model = tiny(NARROWED, classes=3)
    images, labels, loss = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]), Distil()
    taught = target(model(images), loss)
    _, full = objective(model, loss)(images, labels, 1.0, None, None)
    _, less = objective(model, loss)(images, labels, 0.5, taught.logits, taught.tokens)
    _, both = objective(model, loss, sandwich=True)(images, labels, 0.5, None, None)
    torch.testing.assert_close(both, full + less)
    _, once = objective(model, loss, sandwich=True)(images, labels, 1.0, None, None)
    torch.testing.assert_close(once, full)


def test_the_full_half_of_a_sandwich_learns_nothing_from_the_other():
    model = tiny(NARROWED, classes=3)
    images, labels, loss = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]), Distil(labels=0, logits=0)
    objective(model, loss, sandwich=True)(images, labels, 0.5, None, None)[0].backward()
    found = {name: p.grad for name, p in model.named_parameters() if name.startswith("blocks.")}
    model.zero_grad()
    taught = target(model(images), loss)
    objective(model, loss)(images, labels, 0.5, taught.logits, taught.tokens)[0].backward()
    expected = {name: p.grad for name, p in model.named_parameters() if name.startswith("blocks.")}
    torch.testing.assert_close(found, expected)


def members(group: dict[str, object]) -> list[torch.Tensor]:
    found = group["params"]
    assert isinstance(found, list)
    return found


def test_every_parameter_is_in_one_group_with_its_own_rate_and_decay():
    model = tiny(NARROWED, classes=3)
    started = dict(model.named_parameters())
    with torch.no_grad():
        for name in ("router.score.parts.1.weight", "blocks.0.mlp.alpha"):
            started[name].zero_()
    groups = parameter_groups(model, Fit(head_rate=7.0, router_rate=3.0, decay=0.1))
    of = {id(p): (group["scale"], group["weight_decay"]) for group in groups for p in members(group)}
    size = {name: parameter.detach().square().mean().sqrt().item() for name, parameter in model.named_parameters()}
    assert sum(len(members(group)) for group in groups) == len(of) == len(list(model.parameters()))
    named = {name: of[id(parameter)] for name, parameter in model.named_parameters()}
    inward, head, position = (size[name] for name in ("blocks.0.mlp.inward", "head.linear.weight", "embed.position"))
    assert named["blocks.0.mlp.inward"] == pytest.approx((inward, 0.1 / inward))
    assert named["head.linear.weight"] == pytest.approx((7 * head, 0.1 / head))
    assert named["embed.position"] == pytest.approx((position, 0.0))
    assert named["router.score.parts.1.weight"] == pytest.approx((3 * 0.02, 0.1 / 0.02))
    assert named["blocks.0.mlp.alpha"] == pytest.approx((3 * 0.02, 0.0))
    assert named["blocks.0.mlp.inward_bias"][1] == named["readout.bias"][1] == 0


def test_labels_count_where_no_teacher_gives_logits():
    model, teacher, headless, pictures = tiny(NARROWED, classes=2), tiny(classes=2), tiny(), shapes()
    assert label_weight(model, pictures, Fit(), None) == 1
    assert label_weight(model, pictures, Fit(), headless) == 1
    assert label_weight(model, pictures, Fit(), teacher) == 0
    assert label_weight(model, pictures, Fit(loss=Distil(labels=0.5)), teacher) == 0.5
    assert label_weight(model, pictures, Fit(loss=Distil(logits=0)), teacher) == 1
    assert label_weight(model, shapes(labelled=False), Fit(), None) == 0
    assert label_weight(headless, pictures, Fit(), None) == 0


def test_frozen_parameters_are_in_no_group():
    model = tiny(NARROWED, classes=3)
    model.embed.weight.requires_grad_(False)
    fewer = parameter_groups(model, Fit())
    assert sum(len(members(group)) for group in fewer) == len(list(model.parameters())) - 1


@torch.no_grad()
def logits_of(model: ViT, images: torch.Tensor, budget: float) -> torch.Tensor | None:
    return model(images, budget=budget).logits


def test_predictions_are_the_networks_own_in_order():
    model, pictures = tiny(NARROWED, classes=2), shapes(11)
    images = torch.stack([pictures[i][0] for i in range(11)])
    before = torch.random.get_rng_state()
    logits, labels = predict(model, pictures, 0.5, batch=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert labels.tolist() == list(pictures.labels)
    torch.testing.assert_close(logits, logits_of(model, images, 0.5))
    assert not logits.requires_grad
    model.budget = 0.4
    torch.testing.assert_close(predict(model, pictures)[0], logits_of(model, images, 0.4))
    half, _ = predict(model, pictures, 0.5, precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < (half - logits).abs().max() < 0.1 * logits.abs().max()


def test_features_are_class_token_and_mean_patch():
    model, pictures = tiny(NARROWED, prefix=2), shapes(5)
    tokens = model(torch.stack([pictures[i][0] for i in range(5)]), budget=0.5).tokens.detach()
    values, labels = features(model, pictures, 0.5, batch=2)
    torch.testing.assert_close(values, torch.cat([tokens[:, 0], tokens[:, 2:].mean(1)], 1))
    assert labels.tolist() == list(pictures.labels)


def test_predictions_that_cannot_be():
    with pytest.raises(ValueError, match="predictions need a network with a head; this one has none"):
        predict(tiny(), shapes())
    with pytest.raises(ValueError, match="features need a class token; this network has prefix 0"):
        features(tiny(prefix=0), shapes())
    with pytest.raises(ValueError, match="there are no pictures to run over"):
        predict(tiny(classes=2), shapes(0))
    with pytest.raises(ValueError, match="precision must be one of no, bf16; got 'half'"):
        predict(tiny(classes=2), shapes(), precision="half")


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_finds_the_optimum_that_scipy_finds(classes: int):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 5)) * [1, 10, 0.1, 1, 1] + [0, 5, 0, 0, 3]
    labels = (values[:, 0] + rng.normal(size=60) > 0).astype(int) + (classes > 2) * (values[:, 4] > 4)
    standard = (values - values.mean(0)) / values.std(0)

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[: classes * 5].reshape(classes, 5), flat[classes * 5 :]
        logits = standard @ weight.T + bias
        likelihood = logits[np.arange(60), labels] - np.log(np.exp(logits).sum(1))
        return -likelihood.mean() + 0.02 * (weight**2).sum()

    best = minimize(loss, np.zeros(classes * 6), tol=1e-12)
    weight, bias = logistic(torch.from_numpy(values), torch.from_numpy(labels), classes, l2=0.04)
    expected = standard @ best.x[: classes * 5].reshape(classes, 5).T + best.x[classes * 5 :]
    np.testing.assert_allclose(values @ weight.T.numpy() + bias.numpy(), expected, atol=2e-4)


def test_a_constant_feature_gets_no_weight():
    values = torch.cat([torch.randn(20, 2), torch.full((20, 1), 0.1)], 1)
    weight, bias = logistic(values, torch.arange(20) % 2, 2, l2=0.1)
    assert weight[:, 2].tolist() == [0, 0]
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


@pytest.mark.parametrize("kind", ["class", "class_mean"])
def test_a_probe_is_the_optimum_on_what_the_head_reads(kind: str):
    model, pictures = tiny(NARROWED, classes=2, head=kind), shapes(24)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = probe(model, pictures, (1.0, 0.5), l2=0.1, batch=7)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    changed = {name for name, tensor in found.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.linear.weight", "head.linear.bias"}
    # At the optimum the mean gradient of the bias vanishes: predicted shares are the true ones.
    shares = torch.cat([predict(found, pictures, budget)[0].softmax(-1) for budget in (1.0, 0.5)]).mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.5]), atol=1e-5, rtol=0)
    logits, labels = predict(found, pictures)
    assert (logits.argmax(-1) == labels).float().mean() > 0.8
    again = probe(model, pictures, (1.0, 0.5), l2=0.1, batch=7)
    assert torch.equal(again.state_dict()["head.linear.weight"], found.state_dict()["head.linear.weight"])


def test_probes_that_cannot_be():
    with pytest.raises(ValueError, match="needs a head of kind class or class_mean; got none"):
        probe(tiny(), shapes())
    with pytest.raises(ValueError, match="needs a head of kind class or class_mean; got 'mean'"):
        probe(tiny(classes=2, head="mean"), shapes())
    with pytest.raises(ValueError, match="the head has 3 classes and the pictures 2"):
        probe(tiny(classes=3), shapes())
    with pytest.raises(ValueError, match="training needs labels"):
        probe(tiny(classes=2), shapes(labelled=False))
    with pytest.raises(ValueError, match="pictures of at least 2 classes; got 1: c0"):
        probe(tiny(classes=2), shapes().subset([0, 2, 4]))
    with pytest.raises(ValueError, match=r"at least one budget and l2 above 0; got \(\) and 0.01"):
        probe(tiny(classes=2), shapes(), ())
    with pytest.raises(ValueError, match=r"budget must lie in \[.*got 0.01"):
        probe(tiny(NARROWED, classes=2), shapes(), (0.01,))
