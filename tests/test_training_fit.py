"""Training from pictures to a saved network: what it learns, what it notes, and what it refuses."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_pictures import shapes, watched
from tiny_vit import DENSE, NARROWED, tiny

from nestor.models.saved import load_model
from nestor.models.vit import ViT
from nestor.training import Distil, Fit, Fixed, Sampled, fit, predict, probe
from nestor.training.losses import Objective, misalignment
from nestor.training.report import Report

QUICK = Fit(epochs=2, batch=6, rate=0.02, warmup=0.1)


pytestmark = pytest.mark.usefixtures("one_thread")


def same(model: ViT, other: ViT) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def record(out: Path) -> dict:
    return json.loads((out / "fit.json").read_text())


def test_the_model_stays_and_the_result_is_what_lies_on_disk(tmp_path: Path):
    model = tiny(NARROWED, classes=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    result = fit(model, shapes(), QUICK, out=tmp_path / "a" / "b", validate=shapes(6, seed=1), cpu=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not result.training
    assert not same(result, model)
    assert same(load_model(tmp_path / "a" / "b"), result)
    noted = record(tmp_path / "a" / "b")
    assert noted["settings"]["rate"] == QUICK.rate
    assert noted["settings"]["budgets"]["type"] == "Sampled"
    assert noted["versions"].keys() == {"python", "nestor", "torch", "accelerate"}
    assert noted["steps"] == 4
    assert noted["seconds"] > 0
    for epoch in noted["epochs"]:
        assert epoch["loss"] == pytest.approx(sum(epoch["parts"].values()))
        assert len(epoch["accuracy"]) == 3
    last = noted["epochs"][-1]["accuracy"]["1.00"]
    logits, labels = predict(result, shapes(6, seed=1), 1.0)
    assert last == (logits.argmax(-1) == labels).double().mean().item()


def test_a_dense_network_learns_the_labels():
    model, pictures = tiny(classes=2), shapes(24)
    result = fit(
        model, pictures, Fit(epochs=12, batch=8, rate=0.05, head_rate=10.0, warmup=0.1, budgets=Fixed()), cpu=True
    )
    logits, labels = predict(result, pictures)
    assert (logits.argmax(-1) == labels).float().mean() > 0.9


def test_a_nested_network_learns_from_its_teacher_without_labels():
    teacher = tiny(DENSE)
    model, pictures = tiny(NARROWED), shapes(24, labelled=False)
    images = torch.stack([pictures[i][0] for i in range(24)])

    @torch.no_grad()
    def away(network: ViT) -> list[float]:
        return [misalignment(network(images, budget=b).tokens, teacher(images).tokens).item() for b in (1.0, 0.5)]

    result = fit(
        model, pictures, Fit(epochs=12, batch=8, rate=0.05, head_rate=10.0, warmup=0.1), teacher=teacher, cpu=True
    )
    assert all(after < 0.7 * before for after, before in zip(away(result), away(model), strict=True))


def test_a_nested_network_teaches_itself():
    pictures = shapes(24)
    model = probe(tiny(NARROWED, classes=2), pictures)
    images = torch.stack([pictures[i][0] for i in range(24)])

    @torch.no_grad()
    def apart(network: ViT) -> float:
        return misalignment(network(images, budget=0.5).tokens, network(images, budget=1.0).tokens).item()

    result = fit(model, pictures, Fit(epochs=10, batch=8, rate=0.03, head_rate=10.0, warmup=0.1), cpu=True)
    assert apart(result) < 0.7 * apart(model)


def test_the_router_and_its_gates_learn():
    model = tiny(NARROWED, classes=2)
    result = fit(model, shapes(), QUICK, cpu=True)
    moved = {name for name, tensor in result.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])}
    assert {"router.score.parts.1.weight", "router.score.parts.0.slope", "blocks.0.mlp.alpha"} <= moved
    assert {"router.score.parts.0.centre", "router.score.parts.0.spread"}.isdisjoint(moved)


def test_half_precision_keeps_single_weights_and_stays_near():
    model = tiny(NARROWED, classes=2)
    single, half = (fit(model, shapes(), replace(QUICK, precision=p), cpu=True) for p in ("no", "bf16"))
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float32}
    assert not same(single, half)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(half(images).tokens, single(images).tokens, atol=0.1, rtol=0.1)


def test_checkpointing_gives_the_same_weights():
    model = tiny(NARROWED, classes=2)
    expected = fit(model, shapes(), QUICK, cpu=True)
    model.checkpointing = True
    torch.testing.assert_close(fit(model, shapes(), QUICK, cpu=True).state_dict(), expected.state_dict())


def test_workers_change_nothing():
    model = tiny(NARROWED, classes=2)
    settings = replace(QUICK, epochs=1)
    assert same(fit(model, shapes(), settings, workers=1, cpu=True), fit(model, shapes(), settings, cpu=True))


def test_fewer_pictures_than_a_batch_are_one_batch(tmp_path: Path):
    fit(tiny(classes=2), shapes(5), replace(QUICK, batch=100), out=tmp_path, cpu=True)
    assert record(tmp_path)["steps"] == 2


@pytest.mark.parametrize("network", [DENSE, NARROWED])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, network):
    model = tiny(network, classes=2)
    with torch.no_grad():
        model.embed.bias.fill_(float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"step 1 of 4 gave a loss of nan .*; no checkpoint was written\. Lower"
    ):
        fit(model, shapes(), QUICK, out=tmp_path, cpu=True)
    assert list(tmp_path.iterdir()) == []


def test_the_last_good_checkpoint_is_named_and_kept(tmp_path: Path, monkeypatch):
    forward, calls = Objective.forward, []

    def exploding(self: Objective, *args: Any):
        calls.append(args)
        loss, parts = forward(self, *args)
        return (loss * float("inf"), parts * float("inf")) if len(calls) == 4 else (loss, parts)

    monkeypatch.setattr(Objective, "forward", exploding)
    with pytest.raises(
        FloatingPointError, match=r"step 4 of 4 .* the last good checkpoint is .*state.safetensors, after step 2"
    ):
        fit(tiny(NARROWED, classes=2), shapes(), QUICK, out=tmp_path, cpu=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_tensorboard_shows_losses_budget_rate_and_accuracy(tmp_path: Path):
    fit(tiny(NARROWED, classes=2), shapes(), QUICK, tensorboard=tmp_path, validate=shapes(4), cpu=True)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    losses = {f"loss/{part}" for part in ("labels", "logits", "prefix", "patches", "total")}
    assert losses | {"budget", "rate", "accuracy/1.00"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4]
    assert events.Scalars("rate")[0].value == pytest.approx(QUICK.rate)


def reported(*, terminal: bool, active: bool = True) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160, quiet=not active)
    with Report(steps=10, done=2, active=active, console=console) as report:
        report.step(3, parts=(0.5, 0.25, 0.0, 0.0, 0.0), budget=0.5, rate=1e-3, pictures=8)
        report.epoch({"epoch": 1, "loss": 0.75, "accuracy": {"1.00": 0.5}}, 3)
    return stream.getvalue()


def test_a_terminal_sees_a_bar_and_a_file_sees_lines():
    bar = reported(terminal=True)
    assert "loss 0.7500  budget 0.50" in bar
    assert "3/10" in bar
    assert reported(terminal=False).splitlines() == ["epoch 1: loss 0.7500  accuracy at 1.00: 0.500"]
    assert reported(terminal=False, active=False) == ""


def fails(
    message: str, model: ViT, pictures, settings: Fit = QUICK, error: type[Exception] = ValueError, **more
) -> None:
    """Nothing is read and nothing is written before the refusal."""

    def read() -> None:
        raise AssertionError("a picture was read")

    with pytest.raises(error, match=message):
        fit(model, watched(pictures, 1, read), settings, cpu=True, **more)


def test_pictures_that_cannot_teach():
    fails("training needs labels; these 12 pictures have none", tiny(classes=2), shapes(labelled=False))
    fails("at least 2 classes; got 1: c0", tiny(classes=2), shapes(4).subset([0, 2]))
    fails("there are no pictures to train on", tiny(classes=2), shapes(0))
    fails(r"images must be \(B, 3, H, W\) with H and W multiples of the patch, 4", tiny(classes=2), shapes(size=18))
    fails("the head has 3 classes and the pictures 2", tiny(classes=3), shapes())
    turned = tiny(classes=2, labels=("c1", "c0"))
    fails("name the same classes in another order: c1, c0 against c0, c1", turned, shapes())
    other = tiny(classes=2, labels=("good", "bad"))
    assert isinstance(fit(other, shapes(), replace(QUICK, epochs=1), cpu=True), ViT)


def test_nothing_to_learn_from():
    fails("without a teacher the network needs a head; it has none", tiny(NARROWED), shapes())
    fails("without a teacher labels must count", tiny(classes=2), shapes(), replace(QUICK, loss=Distil(labels=0)))
    silent = replace(QUICK, loss=Distil(prefix=0, patches=0))
    fails("no part of the loss applies", tiny(), shapes(), silent, teacher=tiny(classes=2))


def test_teachers_that_do_not_fit():
    model = tiny(NARROWED, classes=2)
    fails("the teacher has 5 classes and the network 2", model, shapes(), teacher=tiny(classes=5))
    wide = replace(DENSE, widths=(32,))
    fails("the teacher has width 32 and the network 24", model, shapes(), teacher=tiny(wide, classes=2))
    fails("the teacher has prefix 3 and the network 1", model, shapes(), teacher=tiny(classes=2, prefix=3))
    coarse = tiny(classes=2, patch=8, grid=(2, 2))
    fails(r"the teacher has patches on a picture \(2, 2\) and the network \(4, 4\)", model, shapes(), teacher=coarse)
    grey = tiny(classes=2, mean=(0.5, 0.5, 0.5))
    fails(r"the teacher wants pictures with mean \(0.5, 0.5, 0.5\)", model, shapes(), teacher=grey)
    logits_only = replace(QUICK, epochs=1, loss=Distil(prefix=0, patches=0))
    assert isinstance(fit(model, shapes(), logits_only, teacher=tiny(wide, classes=2), cpu=True), ViT)
    tokens_only = replace(QUICK, epochs=1, loss=Distil(logits=0))
    assert isinstance(fit(model, shapes(), tokens_only, teacher=tiny(classes=5), cpu=True), ViT)


def test_budgets_and_validation_that_do_not_fit():
    model = tiny(NARROWED, classes=2)
    fails(r"budget must lie in \[.*got 0.05", model, shapes(), replace(QUICK, budgets=Fixed(budget=0.05)))
    fails(
        "validation must be as large as those for training, 16 px; got 8 px", model, shapes(), validate=shapes(size=8)
    )
    fails("the head has 2 classes and the pictures 3", model, shapes(), validate=shapes(classes=3))
    fails("training needs labels; these 12 pictures", model, shapes(), validate=shapes(labelled=False))


def test_a_file_where_the_folder_should_be(tmp_path: Path):
    (tmp_path / "file").write_text("")
    fails("File exists", tiny(classes=2), shapes(), error=FileExistsError, out=tmp_path / "file")


def test_sampled_budgets_below_the_widths_are_raised(tmp_path: Path):
    settings = replace(QUICK, epochs=1, budgets=Sampled(low=0.01, high=0.02, full=0))
    fit(tiny(NARROWED, classes=2), shapes(), settings, out=tmp_path, cpu=True)
    assert record(tmp_path)["steps"] == 2


@pytest.mark.parametrize("package", ["accelerate", "torch.utils.tensorboard.writer"])
def test_missing_packages_say_what_to_install(tmp_path: Path, monkeypatch, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"Install it: pip install 'nestor\[train\]'"):
        fit(tiny(classes=2), shapes(), QUICK, tensorboard=tmp_path, cpu=True)
