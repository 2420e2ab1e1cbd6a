"""One run of training: the steps, what is noted of them and what is kept."""

from __future__ import annotations

import copy
import json
import math
import platform
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import TYPE_CHECKING, NoReturn, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nestor import store
from nestor.data import Pictures
from nestor.models.composed import Composed
from nestor.models.saved import inside, save_model
from nestor.training import checkpoint
from nestor.training.checkpoint import Progress
from nestor.training.checks import label_weight, patches_of, sandwiched
from nestor.training.interrupt import Deferred
from nestor.training.losses import PARTS, Objective, Target, target
from nestor.training.predict import autocast, predict
from nestor.training.report import Report
from nestor.training.schedule import batches, rate_factor
from nestor.training.settings import described

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from nestor.data import Examples
    from nestor.measure.trace import Watch
    from nestor.models.video import Network
    from nestor.training.report import Epoch
    from nestor.training.settings import Fit

# No tensor learns as if it were smaller than this; vectors, and matrices of zeros, as if they were at least so large.
_SMALLEST, _FROM_NOTHING = 1e-3, 0.02


class Run:
    """One run of training: what stays the same from step to step, and the progress."""

    def __init__(
        self,
        model: Network,
        pictures: Examples,
        settings: Fit,
        teacher: Network | None,
        out: Path | None,
        validate: Examples | None,
        accelerator: Accelerator,
        watch: Watch | None = None,
    ):
        self.settings, self.out, self.validate, self.accelerator = settings, out, validate, accelerator
        parts = accelerator.num_processes
        if settings.batch % parts or len(pictures) < parts:
            raise ValueError(
                f"{parts} processes must share each batch evenly; got a batch of {settings.batch} and "
                f"{len(pictures)} pictures. Use a multiple of {parts} and at least {parts} pictures."
            )
        self.pictures = pictures
        if settings.augment is not None and isinstance(pictures, Pictures):
            self.pictures = pictures.augmented(settings.augment, seed=settings.seed)
        self.batch = min(settings.batch, len(pictures) // parts * parts)
        self.each = len(pictures) // self.batch
        self.steps = settings.steps or self.each * settings.epochs
        self.least = model.least_budget(patches_of(model, pictures))
        self.identity = checkpoint.identity(model, self.pictures, settings, teacher) if out else {}
        device = accelerator.device
        self.student = copy.deepcopy(model).to(device).train()
        self.teacher = teacher if teacher is None or _at(teacher, device) else copy.deepcopy(teacher).to(device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student, settings), lr=settings.rate, fused=True)
        objective = Objective(
            self.student,
            settings.loss,
            smoothing=settings.smoothing,
            labels=label_weight(model, pictures, settings, teacher),
            sandwich=sandwiched(model, settings, teacher),
            balance=settings.balance,
            watched=watch is not None,
        )
        self.objective = accelerator.prepare(objective)
        self.progress = Progress(sums=(0.0,) * len(PARTS))
        self.kept: int | None = None
        self.watch = watch

    def train(self, tensorboard: Path | None, workers: int) -> None:
        """Run all steps that are left, then keep the result; nothing is left where `out` holds it already."""
        main = self.accelerator.is_main_process
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            if (result := checkpoint.result(self.out, self.identity)) is not None:
                inside(self.student).load_state_dict(result)
                if main:
                    checkpoint.remove(self.out)
                said = Report(steps=self.steps, done=self.steps, active=main)
                said.say(f"{self.out} holds the result of this run already")
                return
            if (found := checkpoint.read(self.out, self.student, self.optimizer, self.identity)) is not None:
                self.progress, self.kept = found, found.step
        self.accelerator.wait_for_everyone()
        done = self.progress.step
        with (
            Report(steps=self.steps, done=done, active=main, tensorboard=tensorboard) as report,
            Deferred(report.say) as interrupt,
        ):
            if done:
                report.say(f"resuming after step {done} of {self.steps}")
            for epoch in range(done // self.each, -(-self.steps // self.each)):
                self._epoch(epoch, report, interrupt, workers)
        if self.out is not None and main:
            store.write_text(self.out / checkpoint.RECORD, json.dumps(self._record(), indent=2) + "\n")
            save_model(self.student, self.out)
            checkpoint.remove(self.out)
        self.accelerator.wait_for_everyone()

    def _epoch(self, epoch: int, report: Report, interrupt: Deferred, workers: int) -> None:
        start, a = self.progress.step - epoch * self.each, self.accelerator
        shares = batches(
            len(self.pictures),
            seed=self.settings.seed,
            epoch=epoch,
            batch=self.batch,
            start=start,
            part=a.process_index,
            parts=a.num_processes,
        )
        loader = DataLoader(
            self.pictures.with_epoch(epoch),
            batch_sampler=list(islice(shares, self.steps - self.progress.step)),
            num_workers=workers,
            pin_memory=a.device.type == "cuda",
            generator=torch.Generator(),
        )
        begin = time.monotonic()
        for images, labels in loader:
            stop = self._step(images.to(a.device), labels.to(a.device), report, interrupt)
            now = time.monotonic()
            self.progress = replace(self.progress, seconds=self.progress.seconds + now - begin)
            begin = now
            ended = self.progress.step % self.each == 0 or self.progress.step == self.steps
            if ended:
                self._note(epoch, report)
            if stop or ended or self.progress.step % self.settings.checkpoint_every == 0:
                self._keep()
            if stop:
                self._stop()

    def _step(self, images: Tensor, labels: Tensor, report: Report, interrupt: Deferred) -> bool:
        """One update; whether any process was asked to stop."""
        settings, step = self.settings, self.progress.step
        # Whatever is random in a network depends on the step alone, so that a resumed run draws the same.
        words = np.random.SeedSequence((settings.seed, step, self.accelerator.process_index)).generate_state(1)
        torch.manual_seed(int(words[0]))
        budget = settings.budgets.draw(settings.seed, step, self.least)
        rate = settings.rate * rate_factor(step, self.steps, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        with autocast(self.accelerator.device, settings.precision):
            taught = self._taught(images)
            loss, parts, *loads = self.objective(images, labels, budget, taught.logits, taught.tokens)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.student.parameters(), settings.clip)
        # All processes learn the same numbers, so that all of them stop or none.
        told = torch.cat([parts.float(), parts.new_tensor([float(interrupt.asked)])])
        *values, asked = self.accelerator.reduce(told, "mean").tolist()  # pyright: ignore[reportAttributeAccessIssue]
        if not math.isfinite(sum(values)) or norm is None or not math.isfinite(float(norm)):
            self._refuse(sum(values), norm, budget, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if isinstance(self.student, Composed):
            self.student.settle((step + 1) / self.steps)
        sums = tuple(a + b for a, b in zip(self.progress.sums, values, strict=True))
        self.progress = replace(self.progress, step=step + 1, sums=sums)
        report.step(step + 1, parts=tuple(values), budget=budget, rate=rate, pictures=self.batch)
        if self.watch is not None:
            self._see(self.watch, loads, report)
        return asked > 0

    def _see(self, watch: Watch, loads: list[Tensor], report: Report) -> None:
        """Note what the experts got from all processes; one of them keeps watch and warns."""
        together = [self.accelerator.reduce(load, "sum") for load in loads]
        if self.accelerator.is_main_process:
            watch.count([cast("Tensor", load) for load in together])
            report.loads(self.progress.step, watch.numbers())

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Target:
        if self.teacher is None:
            return Target(None, None)
        return target(self.teacher(images, budget=1.0), self.settings.loss)

    def _note(self, epoch: int, report: Report) -> None:
        """Close an epoch: its mean losses and, where asked for, accuracies."""
        steps = self.progress.step - epoch * self.each
        means = [total / steps for total in self.progress.sums]
        note: Epoch = {"epoch": epoch + 1, "loss": sum(means), "parts": dict(zip(PARTS, means, strict=True))}
        if self.validate is not None and self.accelerator.is_main_process:
            note["accuracy"] = {
                f"{budget:.2f}": _accuracy(self.student, self.validate, budget, self.settings.precision)
                for budget in self.settings.budgets.shown(self.least)
            }
        if self.watch is not None and self.accelerator.is_main_process:
            note["loads"] = [load.tolist() for load in self.watch.loads()]
            note["dead"] = [list(each) for each in self.watch.dead()]
        zero = (0.0,) * len(PARTS)
        self.progress = replace(self.progress, sums=zero, epochs=(*self.progress.epochs, note))
        if self.accelerator.is_main_process:
            report.epoch(note, self.progress.step)

    def _keep(self) -> None:
        if self.out is None:
            return
        if self.accelerator.is_main_process:
            checkpoint.write(self.out, self.student, self.optimizer, self.progress, self.identity)
        self.kept = self.progress.step

    def _stop(self) -> NoReturn:
        where = f"stopped after step {self.progress.step} of {self.steps}"
        if self.out is None:
            raise KeyboardInterrupt(f"{where}; nothing was kept. Give an output folder to be able to resume.")
        raise KeyboardInterrupt(
            f"{where}; {checkpoint.file_of(self.out)} is written. "
            f"Start the same run again with output {self.out} to go on."
        )

    def _refuse(self, loss: float, norm: Tensor | None, budget: float, rate: float) -> NoReturn:
        if self.out is None or self.kept is None:
            kept = "no checkpoint was written"
        else:
            kept = f"the last good checkpoint is {checkpoint.file_of(self.out)}, after step {self.kept}"
        size = "unknown" if norm is None else f"{float(norm):.4g}"
        raise FloatingPointError(
            f"step {self.progress.step + 1} of {self.steps} gave a loss of {loss:.4g} and a gradient of norm {size} at "
            f"budget {budget:.2f} and rate {rate:.3g}; {kept}. Lower the rate, or train with precision 'no'."
        )

    def _record(self) -> dict[str, object]:
        return {
            "settings": described(self.settings),
            "pictures": len(self.pictures),
            "size": self.pictures.size,
            "processes": self.accelerator.num_processes,
            "steps": self.steps,
            "seconds": round(self.progress.seconds, 3),
            "versions": {"python": platform.python_version()}
            | {name: _version(name) for name in ("nestor", "torch", "accelerate")},
            "epochs": list(self.progress.epochs),
            "identity": self.identity,
            "result": checkpoint.fingerprint(inside(self.student).state_dict()),
        }


def parameter_groups(model: Network, settings: Fit) -> list[dict[str, object]]:
    """A group for each parameter: `scale` multiplies the schedule's rate.

    Adam moves all weights by about its rate, whatever their size, and folded tensors differ in size a hundredfold (they
    contain norms and LayerScale). The rate is therefore relative to each tensor's root mean square at the start.
    """
    groups = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        path = name.split(".")
        head, gate = "head" in path, "router" in path or path[-1] == "alpha"
        size = parameter.detach().float().square().mean().sqrt().item()
        matrix = parameter.ndim > 1 and not name.endswith("bias")
        scale = max(size, _SMALLEST if matrix and size else _FROM_NOTHING)
        decay = settings.decay / scale if matrix and path[-1] not in ("prefix", "position") else 0.0
        factor = settings.head_rate if head else settings.router_rate if gate else 1.0
        groups.append({"params": [parameter], "scale": scale * factor, "weight_decay": decay})
    return groups


def _accuracy(model: Network, pictures: Examples, budget: float, precision: str) -> float:
    logits, labels = predict(model, pictures, budget, precision=precision)
    return (logits.argmax(-1) == labels).double().mean().item()


def _at(model: Network, device: torch.device) -> bool:
    return next(model.parameters()).device == device


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
