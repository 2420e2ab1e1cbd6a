"""Trainer trains our networks over budgets, and PEFT's adapters attach to them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_pictures import shapes
from tiny_vit import NARROWED, OWN, tiny
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import nestor
from nestor.hub import NestorForImageClassification, SampledBudgets
from nestor.training import Fixed

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
# PEFT asks transformers for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = LoraConfig(r=2, target_parameters=["attention.inward", "attention.outward", "mlp.inward", "mlp.outward"])


def network(nest: nestor.Nest = NARROWED) -> NestorForImageClassification:
    """The same one each time."""
    torch.manual_seed(0)
    return NestorForImageClassification.from_nestor(tiny(nest, classes=2, labels=("a", "b"), head="class_mean"))


class Batches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Tiny pictures as a Trainer wants them."""

    def __init__(self) -> None:
        self.pictures = shapes(12)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, label = self.pictures[index]
        return {"pixel_values": image, "labels": torch.tensor(label)}


class Noting(TrainerCallback):
    """Keeps the budget and the loss of each step."""

    def __init__(self, model: nn.Module):
        self.budgets: list[float] = []
        self.losses: list[float] = []
        model.register_forward_hook(self._forward)

    def _forward(self, module: Any, inputs: Any, output: Any) -> None:
        if output.loss is not None:
            self.budgets.append(module.budget)
            self.losses.append(output.loss.item())


def accuracy(said: Any) -> dict[str, float]:
    return {"accuracy": float((said.predictions.argmax(1) == said.label_ids).mean())}


def trained(
    model: nn.Module,
    folder: Path,
    *callbacks: TrainerCallback,
    eval_dataset: Any = None,
    compute_metrics: Any = None,
    resume: str | None = None,
    **more: Any,
) -> Trainer:
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **more,
    )
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=Batches(),
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_trainer_trains_at_a_budget_of_each_step(tmp_path: Path):
    model = network()
    model.budget, noted = 0.9, Noting(model)
    before = model.vit.blocks[0].attention.inward.detach().clone()
    trainer = trained(model, tmp_path, SampledBudgets())
    assert len(noted.budgets) == 6
    assert len(set(noted.budgets)) > 2
    assert all(model.least_budget <= budget <= 1 for budget in noted.budgets)
    assert all(0 < loss < 10 for loss in noted.losses)
    assert model.budget == 0.9
    assert not torch.equal(model.vit.blocks[0].attention.inward, before)
    trainer.save_model(str(tmp_path / "result"))
    again = nestor.load(tmp_path / "result")
    assert torch.equal(again(IMAGES, 0.6).logits, model.eval()(IMAGES, budget=0.6).logits)


def test_without_the_callback_the_budget_stays_and_checkpointing_is_a_flag(tmp_path: Path):
    model = network()
    model.budget, noted = 0.7, Noting(model)
    trained(model, tmp_path, activation_checkpointing=True, max_steps=2)
    assert noted.budgets == [0.7, 0.7]
    assert model.vit.checkpointing


def test_a_trainer_evaluates_and_predicts_at_the_own_budget(tmp_path: Path):
    model = network()
    model.budget = 0.7
    trainer = trained(model, tmp_path, max_steps=1, eval_dataset=Batches(), compute_metrics=accuracy)
    batch = torch.utils.data.default_collate([Batches()[i] for i in range(12)])
    model.eval()
    with torch.no_grad():
        logits = model.vit(batch["pixel_values"], 0.7).logits
    measured = trainer.evaluate()
    right = (logits.argmax(1) == batch["labels"]).float().mean().item()
    assert measured["eval_accuracy"] == pytest.approx(right)
    assert measured["eval_loss"] == pytest.approx(nn.functional.cross_entropy(logits, batch["labels"]).item(), rel=1e-5)
    said = trainer.predict(Batches())  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(torch.tensor(said.predictions), logits)
    assert torch.equal(torch.tensor(said.label_ids), batch["labels"])


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_ended(tmp_path: Path):
    whole = network()
    trained(whole, tmp_path / "whole", SampledBudgets(), save_steps=3)
    other = network()
    with torch.no_grad():
        other.vit.embed.weight.zero_()
    trained(other, tmp_path / "rest", SampledBudgets(), resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert other.vit.embed.weight.any()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_best_checkpoint_is_taken_back(tmp_path: Path):
    model, best = network(), 2
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "metric_for_best_model": "best"}
    seen: list[int] = []

    def only_the_first(_: Any) -> dict[str, float]:
        seen.append(len(seen))
        return {"best": -float(len(seen))}

    trained(
        model,
        tmp_path,
        eval_dataset=Batches(),
        compute_metrics=only_the_first,
        load_best_model_at_end=True,
        greater_is_better=True,
        **settings,
    )
    assert len(seen) == 3
    wanted = nestor.load(tmp_path / f"checkpoint-{best}").state_dict()
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_the_callback_finds_the_network_below_wrappers_and_refuses_others():
    model = network()
    arguments = (SimpleNamespace(seed=0), SimpleNamespace(global_step=0), None)
    callback: Any = SampledBudgets(Fixed(budget=0.6))
    callback.on_step_begin(*arguments, model=nn.Sequential(model))
    assert model.budget == 0.6
    callback.on_step_end(*arguments, model=nn.Sequential(model))
    assert model.budget == 1
    with pytest.raises(ValueError, match=r"SampledBudgets needs a network of nestor.hub; got Linear. Leave it out."):
        callback.on_step_begin(*arguments, model=nn.Linear(1, 1))


@pytest.mark.parametrize("nest", [NARROWED, OWN], ids=["slices", "own"])
def test_adapters_attach_to_the_nested_matrices(nest: nestor.Nest, tmp_path: Path):
    model = network(nest)
    base = {budget: model(IMAGES, budget=budget).logits for budget in (1.0, 0.6)}
    adapted = get_peft_model(model, LORA)
    for budget, logits in base.items():
        torch.testing.assert_close(adapted(IMAGES, budget=budget).logits, logits)
    own: Any = adapted.get_base_model()
    own.budget = 0.6
    torch.testing.assert_close(adapted(IMAGES).logits, base[0.6])
    grown = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(grown) == 16
    assert all("lora_" in name for name in grown)
    noted = Noting(own)
    trained(adapted, tmp_path / "run", SampledBudgets())
    assert len(set(noted.budgets)) > 2
    tuned = adapted.eval()(IMAGES, budget=0.6).logits
    assert (tuned - base[0.6]).abs().max() > 1e-6

    adapted.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(network(nest), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(again(IMAGES, budget=0.6).logits, tuned)
    merged: Any = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(nestor.load(tmp_path / "merged")(IMAGES, 0.6).logits, tuned)


def test_transformers_own_verb_for_adapters_works(tmp_path: Path):
    model = network()
    model.add_adapter(LORA)
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
