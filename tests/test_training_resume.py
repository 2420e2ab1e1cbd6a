"""Nothing is lost: raised errors, Ctrl-C, kill -9 and two processes end in the weights of the undisturbed run."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_worker
from plain_vit import relative
from tiny_pictures import shapes, watched
from tiny_vit import PUBLISHED, tiny
from training_worker import SETTINGS, interrupt

from nestor.models.saved import load_model, save_model
from nestor.models.vit import ViT
from nestor.store import read_tensors, write_tensors
from nestor.training import Fit, Sampled, checkpoint, fit
from nestor.training.checkpoint import file_of

WORKER = Path(training_worker.__file__)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def undisturbed() -> ViT:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = fit(training_worker.model(), shapes(), SETTINGS, cpu=True)
    torch.set_num_threads(threads)
    return result


def assert_equal(found: ViT, expected: ViT) -> None:
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def assert_finished(out: Path, expected: ViT) -> None:
    assert_equal(load_model(out), expected)
    written = ["config.json", "fit.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in out.iterdir()) == written
    record = json.loads((out / "fit.json").read_text())
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2, 3]
    assert record["steps"] == 9


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(WORKER.parent), str(WORKER.parent.parent)])}


class BrokenError(RuntimeError):
    pass


def broken() -> None:
    raise BrokenError


def test_twice_the_same_is_the_same(undisturbed: ViT):
    torch.manual_seed(99)
    assert_equal(fit(training_worker.model(), shapes(), SETTINGS, cpu=True), undisturbed)


def test_keeping_checkpoints_changes_nothing(tmp_path: Path, undisturbed: ViT):
    assert_equal(fit(training_worker.model(), shapes(), SETTINGS, out=tmp_path, cpu=True), undisturbed)
    assert_finished(tmp_path, undisturbed)


# Twelve pictures are three steps an epoch; checkpoints follow steps 2, 3, 4, 6, 8 and 9.
@pytest.mark.parametrize("reading", [1, 9, 13, 14, 22, 36])
def test_an_error_in_any_step(tmp_path: Path, undisturbed: ViT, reading: int):
    with pytest.raises(BrokenError):
        fit(training_worker.model(), watched(shapes(), reading, broken), SETTINGS, out=tmp_path, cpu=True)
    step = (reading - 1) // 4
    kept = max((k for k in (2, 3, 4, 6, 8) if k <= step), default=0)
    assert file_of(tmp_path).is_file() == (kept > 0)
    if kept:
        assert json.loads(read_tensors(file_of(tmp_path))[1]["state"])["step"] == kept
    assert_equal(fit(training_worker.model(), shapes(), SETTINGS, out=tmp_path, cpu=True), undisturbed)
    assert_finished(tmp_path, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_control_c_keeps_the_step_under_way(tmp_path: Path, undisturbed: ViT, number: signal.Signals):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 5 of 9; .*state\.safetensors is written. Start"):
        fit(
            training_worker.model(),
            watched(shapes(), 18, lambda: os.kill(os.getpid(), number)),
            SETTINGS,
            out=tmp_path,
            cpu=True,
        )
    assert signal.getsignal(number) is before
    assert json.loads(read_tensors(file_of(tmp_path))[1]["state"])["step"] == 5
    assert_equal(fit(training_worker.model(), shapes(), SETTINGS, out=tmp_path, cpu=True), undisturbed)
    assert_finished(tmp_path, undisturbed)


def test_a_second_control_c_does_not_wait():
    def twice() -> None:
        interrupt()
        interrupt()

    # A shell that starts the tests in the background has told them to ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(training_worker.model(), watched(shapes(), 18, twice), SETTINGS, cpu=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not str(caught.value)


def test_control_c_without_a_folder_says_that_nothing_is_kept():
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 1 of 9; nothing was kept. Give an output folder"):
        fit(training_worker.model(), watched(shapes(), 1, interrupt), SETTINGS, cpu=True)


def test_kill_9(tmp_path: Path, undisturbed: ViT):
    command = [sys.executable, str(WORKER), "killed", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert json.loads(read_tensors(file_of(tmp_path / "out"))[1]["state"])["step"] == 4
    assert not (tmp_path / "out" / "config.json").exists()
    fit(training_worker.model(), shapes(), SETTINGS, out=tmp_path / "out", cpu=True)
    assert_finished(tmp_path / "out", undisturbed)


def test_a_kill_between_the_result_and_the_end_of_its_checkpoint(tmp_path: Path, undisturbed: ViT, monkeypatch):
    def killed(out: Path) -> None:
        raise SystemError

    save_model(training_worker.model(), tmp_path)
    monkeypatch.setattr(checkpoint, "remove", killed)
    with pytest.raises(SystemError):
        fit(load_model(tmp_path), shapes(), SETTINGS, out=tmp_path, cpu=True)
    monkeypatch.undo()
    assert file_of(tmp_path).exists()
    assert_equal(fit(load_model(tmp_path), shapes(), SETTINGS, out=tmp_path, cpu=True), undisturbed)
    assert_finished(tmp_path, undisturbed)


# What `accelerate launch` runs, without torchvision, which cannot be imported beside a torch without CUDA.
ACCELERATE = (
    "import sys; sys.modules['torchvision'] = None; from accelerate.commands.launch import main; main()",
    *(
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ),
)
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate launch": ["-c", *ACCELERATE],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_take_the_same_steps(launcher: str, tmp_path: Path, undisturbed: ViT):
    command = [sys.executable, *LAUNCHERS[launcher], str(WORKER), "shared", str(tmp_path / "out")]
    variables = environment() | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(KeyboardInterrupt):
        fit(training_worker.model(), watched(shapes(), 1, interrupt), SETTINGS, out=tmp_path / "alone", cpu=True)
    alone, _ = read_tensors(file_of(tmp_path / "alone"))
    shared, _ = read_tensors(tmp_path / "first.safetensors")
    # After one step the first moment is the gradient, up to a factor.
    gradients = [name for name in alone if name.startswith("optimizer.exp_avg.")]
    assert alone.keys() == shared.keys()
    assert len(gradients) > 20
    together = [torch.cat([found[name].flatten() for name in gradients]) for found in (shared, alone)]
    assert relative(*together) < 1e-5
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["processes"] == 2
    images = torch.randn(2, 3, 16, 16)
    assert relative(load_model(tmp_path / "out")(images).tokens, undisturbed(images).tokens) < 1e-3


def stopped(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(training_worker.model(), watched(shapes(), 18, interrupt), SETTINGS, out=out, cpu=True)


def test_another_run_does_not_go_on_from_this_one(tmp_path: Path):
    stopped(tmp_path)
    other = replace(SETTINGS, rate=2e-3, budgets=Sampled(low=0.4, high=0.9, full=0.2))
    message = (
        r"checkpoint/state\.safetensors belongs to another run: settings\.budgets\.low was 0\.3, is 0\.4; "
        r"settings\.rate was 0\.02, is 0\.002\. Delete .*checkpoint to start anew, choose another folder, or go on"
    )
    with pytest.raises(ValueError, match=message):
        fit(training_worker.model(), shapes(), other, out=tmp_path, cpu=True)
    with pytest.raises(ValueError, match=r"another run: pictures was '\w+', is '\w+'\."):
        fit(training_worker.model(), shapes(16), SETTINGS, out=tmp_path, cpu=True)
    changed = training_worker.model()
    with torch.no_grad():
        changed.embed.bias.add_(1)
    with pytest.raises(ValueError, match=r"another run: weights was '\w+', is '\w+'\."):
        fit(changed, shapes(), SETTINGS, out=tmp_path, cpu=True)
    with pytest.raises(ValueError, match=r"another run: teacher was None, is '\w+'\."):
        fit(training_worker.model(), shapes(), SETTINGS, teacher=changed, out=tmp_path, cpu=True)


def test_how_often_checkpoints_are_written_may_change(tmp_path: Path, undisturbed: ViT):
    stopped(tmp_path)
    other = replace(SETTINGS, checkpoint_every=50)
    assert_equal(fit(training_worker.model(), shapes(), other, out=tmp_path, cpu=True), undisturbed)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    stopped(tmp_path)
    path = file_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"state\.safetensors is cut off or no safetensors file"):
        fit(training_worker.model(), shapes(), SETTINGS, out=tmp_path, cpu=True)


def test_a_foreign_checkpoint_is_refused(tmp_path: Path):
    (tmp_path / "checkpoint").mkdir()
    write_tensors(file_of(tmp_path), {"a": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match=r"is no checkpoint of a training run \(KeyError\('state'\)\). Delete"):
        fit(training_worker.model(), shapes(), SETTINGS, out=tmp_path, cpu=True)


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(tmp_path: Path, undisturbed: ViT, monkeypatch):
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        # A checkpoint syncs twice: its file and the folder.
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr("nestor.store.os.fsync", full)
    with pytest.raises(OSError, match=r"the disk is full: .*state\.safetensors needs [\d,]+ bytes"):
        fit(training_worker.model(), shapes(), SETTINGS, out=tmp_path, cpu=True)
    monkeypatch.undo()
    assert [path.name for path in file_of(tmp_path).parent.iterdir()] == ["state.safetensors"]
    assert json.loads(read_tensors(file_of(tmp_path))[1]["state"])["step"] == 2
    assert_equal(fit(training_worker.model(), shapes(), SETTINGS, out=tmp_path, cpu=True), undisturbed)


def test_a_random_router_draws_the_same_after_an_interruption(tmp_path: Path):
    model = tiny(PUBLISHED, classes=2, scores=("uniform",))
    settings = Fit(epochs=2, batch=6, budgets=SETTINGS.budgets, sandwich=False)
    expected = fit(model, shapes(), settings, cpu=True)
    with pytest.raises(KeyboardInterrupt):
        fit(model, watched(shapes(), 13, interrupt), settings, out=tmp_path, cpu=True)
    torch.manual_seed(5)
    assert_equal(fit(model, shapes(), settings, out=tmp_path, cpu=True), expected)
