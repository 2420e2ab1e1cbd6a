"""Networks of other libraries with mixtures in them, through our loop and the Trainer of transformers."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_replace import Few, mixtures, timm_vit, transformers_vit
from tiny_pictures import shapes
from tiny_vit import DENSE, tiny
from torch import nn

from nestor.layers.mixture import Mixture
from nestor.layers.slot import recording
from nestor.measure.trace import Watch
from nestor.models.adopted import Adopted, AdoptedSettings
from nestor.models.saved import load_adopted
from nestor.routing import losses
from nestor.routing.adjust import Noise, Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.refine import hard
from nestor.routing.router import ComposedRouter
from nestor.surgery.dense import dense
from nestor.surgery.grow import upcycle
from nestor.surgery.replace import replace as exchange
from nestor.training import Distil, Fit, Fixed, fit, predict
from nestor.training.balance import Balance, balance, balanced
from nestor.training.config import fit_from
from nestor.training.settings import described

pytestmark = pytest.mark.usefixtures("one_thread")

E = 4
QUICK = Fit(epochs=2, batch=6, rate=0.02, warmup=0.1, budgets=Fixed())
SETTINGS = AdoptedSettings(classes=3)


def grown(part: nn.Module) -> Mixture:
    one = dense(part)
    router = ComposedRouter(Dot(24, E), [Noise(1 / E), Softmax()], partial(top_k, k=2), [hard])
    return Mixture(router, upcycle(one, E))


def made(kind: str) -> nn.Module:
    model = timm_vit() if kind == "timm" else transformers_vit()
    return exchange(model, [name for name, _ in model.named_modules() if name.endswith(".mlp")], grown)


def starved(model: nn.Module) -> nn.Module:
    """Nobody ever wants the last expert of the second layer."""
    router = mixtures(model)[1].router
    assert isinstance(router, ComposedRouter)

    def choice(scores: torch.Tensor, preference: torch.Tensor | None = None) -> Any:
        assert preference is not None
        return top_k(scores, torch.cat([preference[..., :-1], preference[..., -1:] - 9], -1), k=2)

    router.choice = choice
    return model


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_our_loop_trains_a_network_of_another_library(tmp_path: Path, kind: str):
    torch.manual_seed(0)
    model, pictures = Adopted(made(kind), SETTINGS), shapes(12, classes=3, size=32)
    settings = replace(QUICK, balance=(Balance(weight=0.1), Balance(kind=partial(losses.load, deviation=1 / E))))
    result = fit(model, pictures, settings, out=tmp_path, validate=pictures, cpu=True)
    before, after = model.state_dict(), result.state_dict()
    routers = [name for name in before if "router" in name]
    assert len(routers) == 2
    assert all(not torch.equal(before[name], after[name]) for name in routers)
    epochs = json.loads((tmp_path / "fit.json").read_text())["epochs"]
    assert all(epoch["parts"]["balance"] > 0 for epoch in epochs)
    logits, _ = predict(result, pictures)  # pyright: ignore[reportArgumentType]
    again, _ = predict(load_adopted(tmp_path, model.model), pictures)  # pyright: ignore[reportArgumentType]
    assert torch.equal(logits, again)
    assert torch.equal(logits, result(torch.stack([pictures[i][0] for i in range(12)])).logits)


def test_an_adopted_network_learns_from_a_teacher_of_its_own_kind():
    torch.manual_seed(0)
    teacher, student = Adopted(timm_vit(), SETTINGS), Adopted(made("timm"), SETTINGS)
    pictures, only = shapes(12, classes=3, size=32), Distil(prefix=0, patches=0)
    fit(student, pictures, replace(QUICK, loss=only, steps=1), teacher=teacher, cpu=True)  # pyright: ignore
    with pytest.raises(ValueError, match=r"ours only; got Adopted\. Set Distil\(prefix=0, patches=0\)"):
        fit(student, pictures, QUICK, teacher=teacher, cpu=True)  # pyright: ignore[reportArgumentType]


EVERY = {
    "load": partial(losses.load, deviation=1 / E),
    "group": partial(losses.group, groups=2),
    "cost": partial(losses.cost, costs=(1.0, 2.0, 3.0, 4.0)),
    "latency": partial(losses.importance, costs=(1.0, 2.0, 3.0, 4.0)),
    "spread": losses.spread,
    **{name: name for name in ("switch", "switch_by_item", "importance", "gates", "z", "entropy")},
}


@pytest.mark.parametrize("name", EVERY)
def test_every_loss_reaches_both_loops(tmp_path: Path, name: str):
    part = Balance(kind=EVERY[name], weight=-0.1 if name == "spread" else 0.1)
    pictures = shapes(6, classes=3, size=32)
    torch.manual_seed(0)
    model = Adopted(made("timm"), SETTINGS)
    settings = replace(QUICK, epochs=1, balance=(part,))
    assert json.dumps(described(settings))
    result = fit(model, pictures, settings, cpu=True)
    names = [name for name, _ in model.named_parameters() if "router" in name]
    assert all(not torch.equal(model.state_dict()[n], result.state_dict()[n]) for n in names)
    new = made("transformers").eval()
    trainer = trainer_of(new, tmp_path, [part])
    batch = {key: torch.stack([torch.as_tensor(Few()[i][key]) for i in range(4)]) for key in Few()[0]}
    with torch.no_grad(), recording() as record:
        plain = new(**batch)["loss"]
    with torch.no_grad():
        torch.testing.assert_close(
            trainer.compute_loss(new, dict(batch)), plain + balance([part], record.routings), rtol=1e-5, atol=1e-6
        )


def trainer_of(model: nn.Module, folder: Path, parts: list[Balance], watch: Watch | None = None, **more: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        **more,
    )
    return balanced(Trainer, parts, watch=watch)(model=model, args=arguments, train_dataset=Few())


def test_our_loop_warns_of_dead_experts_and_tells_what_each_got(tmp_path: Path):
    torch.manual_seed(0)
    model, pictures = Adopted(starved(made("timm")), SETTINGS), shapes(12, classes=3, size=32)
    plain, watch = fit(model, pictures, QUICK, cpu=True), Watch(steps=3, least=0.01)
    with pytest.warns(UserWarning, match=r"expert 3 of layer 1 got at most 1% of an even share in 3 steps"):
        seen = fit(model, pictures, QUICK, out=tmp_path / "a", tensorboard=tmp_path / "b", cpu=True, watch=watch)
    assert all(torch.equal(tensor, seen.state_dict()[name]) for name, tensor in plain.state_dict().items())
    first, last = json.loads((tmp_path / "a" / "fit.json").read_text())["epochs"]
    assert (first["dead"], last["dead"]) == ([], [[1, 3]])
    assert last["loads"] == [load.tolist() for load in watch.loads()]
    assert last["loads"][1][3] == 0
    assert sum(last["loads"][0]) == pytest.approx(1)
    events = EventAccumulator(str(tmp_path / "b"))
    events.Reload()
    assert [event.value for event in events.Scalars("experts/1/dead")] == [0, 0, 1, 1]


def test_the_trainer_warns_of_dead_experts_and_logs_what_they_got(tmp_path: Path):
    torch.manual_seed(0)
    watch = Watch(steps=3, least=0.01)
    trainer = trainer_of(starved(made("transformers")), tmp_path, [], watch, max_steps=4)
    with pytest.warns(UserWarning, match=r"expert 3 of layer 1 got at most 1% of an even share in 3 steps"):
        trainer.train()
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["experts/1/dead"] for entry in told] == [0, 0, 1, 1]
    assert told[-1]["experts/1/least"] == 0
    assert told[-1]["experts/0/most"] >= 1
    before = [load.clone() for load in watch.loads()]
    trainer.model.eval()
    trainer.compute_loss(trainer.model, {key: torch.as_tensor(v)[None] for key, v in Few()[0].items()})
    assert all(torch.equal(*pair) for pair in zip(before, watch.loads(), strict=True))


def test_a_named_loss_is_read_from_a_file():
    part = Balance(kind="z", weight=0.5)
    assert fit_from({"balance": [{"kind": "z", "weight": 0.5}]}, "here").balance == (part,)
    assert described(part) == {"type": "Balance", "kind": "z", "weight": 0.5}
    kind = {"type": "nestor.routing.losses.load", "given": [], "deviation": 0.5}
    assert described(Balance(kind=partial(losses.load, deviation=0.5))) == {
        "type": "Balance",
        "kind": kind,
        "weight": 0.01,
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Adopted(nn.Identity(), SETTINGS)(torch.ones(2, 5)), r"answer with logits \(2, 3\); got \(2, 5\)"),
        (lambda: Adopted(nn.Identity(), SETTINGS)(torch.ones(2, 3)).tokens, "tokens of an adopted network"),
        (lambda: Balance(kind="switch", weight=-1), "needs a positive weight; got -1"),
        (lambda: Balance(kind=losses.spread, weight=0), "needs a positive weight; got 0"),
    ],
)
def test_errors_name_rule_value_and_repair(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_folder_of_another_kind_or_build_is_refused(tmp_path: Path):
    from nestor.models.saved import save_model

    save_model(tiny(DENSE), tmp_path / "ours")
    with pytest.raises(ValueError, match="must be of kind 'adopted' to be loaded into a network; got 'vit'"):
        load_adopted(tmp_path / "ours", nn.Identity())
    save_model(Adopted(nn.Linear(2, 3), SETTINGS), tmp_path / "linear")
    with pytest.raises(ValueError, match="does not fit this network"):
        load_adopted(tmp_path / "linear", nn.Linear(2, 4))
