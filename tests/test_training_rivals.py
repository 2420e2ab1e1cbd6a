"""Rivals are trained by the same loop: run as they run, at equal compute, and never twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pictures import Watched, shapes, watched
from tiny_vit import DENSE, NARROWED, SKIPPING, tiny

from nestor.layers.nested import Nest
from nestor.models.merged import Merged, falling
from nestor.models.pruned import Pruned
from nestor.models.saved import inside, load_model, save_model
from nestor.models.uniform import Uniform, randomly_routed
from nestor.models.video import Network
from nestor.training import Chosen, Fit, Fixed, InTurn, Sampled, Sandwich, fit, predict
from nestor.training.compute import affordable, step_macs
from nestor.training.losses import Objective
from nestor.training.run import parameter_groups
from nestor.training.schedule import order

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = Fit(epochs=2, batch=6, rate=0.02, warmup=0.1, sandwich=False)
DEPTHS = Nest(widths=(0, 24), hidden=(0, 48), heads=(0, 4))


def rivals() -> dict[str, Network]:
    return {
        "merged": Merged(tiny(DENSE, classes=2)),
        "pruned": Pruned(tiny(DENSE, classes=2)),
        "one width": Uniform(tiny(NARROWED, classes=2)),
        "depths": tiny(DEPTHS, classes=2, head="class_mean", scores=("linear",)),
        "random": randomly_routed(tiny(NARROWED, classes=2)),
    }


def equal(ours: Network, theirs: Any) -> bool:
    return all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def read_nothing() -> None:
    raise AssertionError("a picture was read")


@pytest.mark.parametrize("name", rivals())
def test_a_rival_learns_and_what_is_saved_is_the_network_inside(tmp_path: Path, name: str):
    model, pictures = rivals()[name], shapes(24)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    how = Fit(epochs=12, batch=8, rate=0.05, head_rate=10.0, warmup=0.1, sandwich=False, budgets=Chosen())
    result = fit(model, pictures, how, out=tmp_path, cpu=True)
    assert type(result) is type(model)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())
    assert equal(load_model(tmp_path), inside(result))
    losses = [epoch["loss"] for epoch in json.loads((tmp_path / "fit.json").read_text())["epochs"]]
    assert losses[-1] < 0.8 * losses[0]


def test_a_step_runs_the_network_as_the_rival_does():
    model = tiny(DENSE, classes=2, head="class_mean")
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])
    for rival in (Merged(model), Pruned(model)):
        model.zero_grad()
        logits = rival(images, 0.8).logits
        assert logits is not None
        torch.nn.functional.cross_entropy(logits, labels).backward()
        expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        loss = Objective(rival, QUICK.loss, smoothing=0.0, labels=1.0, sandwich=False)
        loss(images, labels, 0.8, None, None)[0].backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], expected)


def test_parameters_of_the_network_inside_are_in_the_same_groups():
    model, how = tiny(DENSE, classes=2), Fit(head_rate=7.0, decay=0.1)
    alone, within = parameter_groups(model, how), parameter_groups(Merged(model), how)
    told = [[(group["scale"], group["weight_decay"]) for group in groups] for groups in (alone, within)]
    assert told[0] == told[1]


def test_the_widths_of_a_network_are_budgets_of_their_own():
    nested = tiny(SKIPPING, classes=2)
    model = Uniform(nested)
    budgets = model.budgets(16)
    assert budgets[0] == nested.least_budget(16)
    assert budgets[-1] == 1
    assert [model.plan(16, budget) for budget in budgets] == [(16, 0, 0), (0, 16, 0), (0, 0, 16)]
    trained = InTurn(budgets=budgets)
    drawn = [model.plan(16, trained.draw(0, step, nested.least_budget(16))) for step in range(6)]
    assert drawn == 2 * [(16, 0, 0), (0, 16, 0), (0, 0, 16)]


@pytest.mark.parametrize("sandwich", [True, False])
def test_as_many_steps_as_the_compute_pays_for(sandwich: bool):
    model, how = tiny(NARROWED, classes=2), Fit(budgets=Sampled(full=0.3), sandwich=sandwich, seed=3)
    full, least = model.full_macs(16), model.least_budget(16)
    costs = []
    for step in range(40):
        budget = how.budgets.draw(3, step, least)
        costs.append(model.macs(model.plan(16, budget)) + (full if sandwich and budget < 1 else 0))
    assert [step_macs(model, 16, how, step) for step in range(40)] == costs
    for steps in (1, 2, 17):
        assert affordable(model, 16, how, sum(costs[:steps])) == steps
        assert affordable(model, 16, how, sum(costs[: steps + 1]) - 1) == steps
    with pytest.raises(ValueError, match=r"one step costs [\d,]+ multiply-accumulates a picture; got 1\. Raise it"):
        affordable(model, 16, how, 1)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_run_of_so_many_steps(tmp_path: Path, steps: int):
    # Twelve pictures are two steps an epoch.
    pictures = watched(shapes(), 0, read_nothing)
    fit(tiny(NARROWED, classes=2), pictures, replace(QUICK, steps=steps), out=tmp_path, cpu=True)
    noted = json.loads((tmp_path / "fit.json").read_text())
    assert noted["steps"] == steps
    assert [epoch["epoch"] for epoch in noted["epochs"]] == list(range(1, (steps + 1) // 2 + 1))
    assert isinstance(pictures.items, Watched)
    assert pictures.items.read == 6 * steps
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        Fit(steps=0)


def test_the_mean_loss_of_an_epoch_cut_short_is_that_of_its_steps(tmp_path: Path):
    model, pictures = tiny(classes=2), shapes()
    fit(model, pictures, replace(QUICK, steps=1, budgets=Fixed()), out=tmp_path, cpu=True)
    logits, labels = predict(model, pictures.subset(order(12, 0, 0)[:6]))
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    (epoch,) = json.loads((tmp_path / "fit.json").read_text())["epochs"]
    assert epoch["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_finished_run_is_not_run_again(tmp_path: Path):
    model = Pruned(tiny(classes=2))
    first = fit(model, shapes(), QUICK, out=tmp_path, cpu=True)
    assert equal(fit(model, watched(shapes(), 1, read_nothing), QUICK, out=tmp_path, cpu=True), first)
    others = (
        (Merged(model.model), QUICK),
        (Pruned(model.model, stages=(1,)), QUICK),
        (model.model, QUICK),
        (model, replace(QUICK, rate=0.03)),
        (Pruned(tiny(classes=2, prefix=2)), QUICK),
    )
    for other, how in others:
        with pytest.raises(AssertionError, match="a picture was read"):
            fit(other, watched(shapes(), 1, read_nothing), how, out=tmp_path, cpu=True)
    save_model(model, tmp_path)
    with pytest.raises(AssertionError, match="a picture was read"):
        fit(model, watched(shapes(), 1, read_nothing), QUICK, out=tmp_path, cpu=True)
    (tmp_path / "fit.json").write_text("{")
    assert equal(fit(model, shapes(), QUICK, out=tmp_path, cpu=True), first)


def test_a_rivals_run_is_not_resumed_by_another(tmp_path: Path):
    dense = tiny(classes=2)

    def stop() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(Merged(dense), watched(shapes(), 13, stop), QUICK, out=tmp_path, cpu=True)
    with pytest.raises(ValueError, match=r"another run: run was \['Merged', .*\], is \['Merged', "):
        fit(Merged(dense, spread=falling), shapes(), QUICK, out=tmp_path, cpu=True)
    with pytest.raises(ValueError, match=r"another run: run was \['Merged', .*\], is \['Pruned', "):
        fit(Pruned(dense), shapes(), QUICK, out=tmp_path, cpu=True)
    expected = fit(Merged(dense), shapes(), QUICK, cpu=True)
    assert equal(fit(Merged(dense), shapes(), QUICK, out=tmp_path, cpu=True), expected)


def test_a_network_from_nothing_starts_with_closed_gates_and_open_ones_teach_the_router():
    torch.manual_seed(0)
    model = type(tiny())(tiny(NARROWED, classes=2).settings)
    alphas = {name: p for name, p in model.named_parameters() if name.endswith("alpha")}
    routers = {name: p for name, p in model.named_parameters() if name.startswith("router.")}
    assert all(p.item() == 0 for p in alphas.values())
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 2

    def gradients() -> tuple[float, float]:
        model.zero_grad()
        logits = model(images, 0.6).logits
        assert logits is not None
        torch.nn.functional.cross_entropy(logits, labels).backward()
        each = [[p.grad for p in part.values() if p.grad is not None] for part in (routers, alphas)]
        router, alpha = (sum(float(g.abs().sum()) for g in found) for found in each)
        return router, alpha

    router, alpha = gradients()
    assert router == 0
    assert alpha > 0
    with torch.no_grad():
        for p in alphas.values():
            p.fill_(0.1)
    assert gradients()[0] > 0


def test_a_sandwich_can_teach_itself_in_every_step():
    model = tiny(NARROWED, classes=2)
    how = replace(QUICK, budgets=Sandwich(), sandwich=True)
    assert not equal(fit(model, shapes(), how, cpu=True), model)
