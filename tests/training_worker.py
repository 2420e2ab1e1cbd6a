"""What the tests of training run in other processes: `python training_worker.py killed|shared FOLDER`."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny_pictures import shapes, watched
from tiny_vit import NARROWED, tiny

from nestor.data import Augment
from nestor.models.vit import ViT
from nestor.training import Fit, Sampled, fit
from nestor.training.checkpoint import file_of

SETTINGS = Fit(
    epochs=3,
    batch=4,
    rate=0.02,
    checkpoint_every=2,
    budgets=Sampled(low=0.3, high=0.9, full=0.2),
    augment=Augment(flip=True, jitter=0.2),
)


def model() -> ViT:
    torch.manual_seed(3)
    return tiny(NARROWED, classes=2, head="class_mean")


def interrupt() -> None:
    # To this thread, at once: two signals to the process may arrive as one.
    signal.raise_signal(signal.SIGINT)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(out: Path) -> None:
    """Die within step 6 of 9, without a word, after checkpoints at 2, 3 and 4."""
    fit(model(), watched(shapes(), 22, kill), SETTINGS, out=out, cpu=True)


def shared(out: Path) -> None:
    """Interrupt one of the processes in the first step, keep the checkpoint for the test, then go on to the end."""
    pictures = shapes()
    if os.environ["RANK"] == "1":
        pictures = watched(pictures, 1, interrupt)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of 9"):
        fit(model(), pictures, SETTINGS, out=out, cpu=True)
    if os.environ["RANK"] == "0":
        shutil.copy(file_of(out), out.parent / "first.safetensors")
    fit(model(), shapes(), SETTINGS, out=out, cpu=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"killed": killed, "shared": shared}[sys.argv[1]](Path(sys.argv[2]))
