"""Networks that are lost while they serve: in a process of their own, behind the engine, and under load."""

import json
import logging
import os
import signal
import socket
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx2
import pytest
import torch
from asking import LABELS, png
from nets import small
from running import running, until
from serving_worker import DIES, FAILS, HANGS
from test_serving_engine import PATIENT, WAIT, Counted, Gated, ask, kind, pictures, started

from nestor.serving import engine as engines
from nestor.serving import wire, worker
from nestor.serving.controller import Policy
from nestor.serving.lines import Lines
from nestor.serving.network import Answers, LostError, Perishable, ServedViT, sizes
from nestor.serving.order import RefusedError
from nestor.serving.remote import Remote
from nestor.serving.server import Server

SCRIPT = Path(__file__).parent / "serving_worker.py"
BUDGETS = "0.5 1"


def command(tmp_path: Path) -> list[str]:
    file = tmp_path / "budgets"
    if not file.exists():
        file.write_text(BUDGETS)
    return [sys.executable, str(SCRIPT), str(file)]


def marked(mark: float) -> torch.Tensor:
    items = pictures()
    items[0, 0, 0, 0] = mark
    return items


# A process of its own.


def test_a_network_in_a_process_of_its_own_says_the_same_and_comes_back_when_it_is_lost(tmp_path: Path):
    remote, here = Remote(command(tmp_path), most=4, patience=WAIT), ServedViT(small(labels=LABELS), (0.5, 1.0))
    try:
        assert isinstance(remote, Perishable)
        for name in ("budgets", "labels", "input", "cells", "prepare"):
            assert getattr(remote, name) == getattr(here, name)
        first = remote.number
        with pytest.raises(RuntimeError, match="MemoryError: no room for this batch"):
            remote.run(marked(FAILS), 1.0)
        for rows, budget in ((1, 1.0), (4, 0.5), (2, 1.0)):
            there, expected = remote.run(pictures(rows), budget), here.run(pictures(rows), budget)
            assert torch.equal(there.logits, expected.logits)
            assert there.experts is not None
            assert expected.experts is not None
            assert torch.equal(there.experts, expected.experts)
        assert (remote.alive, remote.number) == (True, first)
        with pytest.raises(LostError, match="the network's process was lost"):
            remote.run(marked(DIES), 1.0)
        assert not remote.alive
        assert remote.revive()
        assert torch.equal(remote.run(pictures(), 0.5).logits, here.run(pictures(), 0.5).logits)
        assert remote.number != first
        remote.patience = 0.05
        with pytest.raises(LostError, match="timed out"):
            remote.run(marked(HANGS), 1.0)
        assert not remote.alive
    finally:
        remote.close()
    with pytest.raises(LostError, match="closed"):
        remote.revive()


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("import sys; sys.exit(3)", LostError, "ended with 3 while it started"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", LostError, "ended with -9 while it started"),
        (
            """import socket, struct, sys; said = b'{"failed": "ValueError", "message": "no head"}';"""
            "socket.socket(fileno=int(sys.argv[1])).sendall(struct.pack('<II', len(said), 0) + said)",
            ValueError,
            "no head",
        ),
    ],
)
def test_a_process_that_cannot_start_says_why(script: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Remote([sys.executable, "-S", "-c", script])


class Failing(ServedViT):
    def run(self, items: torch.Tensor, budget: float) -> Answers:
        raise MemoryError("no room\nfor this batch")


def test_what_fails_in_a_process_of_its_own_is_a_line_of_its_log(caplog: pytest.LogCaptureFixture):
    here, there = socket.socketpair()
    served = Failing(small(labels=LABELS), (1.0,))

    def answer() -> None:
        with pytest.raises(EOFError):
            worker._answer(served, there, 4)

    with here, there:
        thread = threading.Thread(target=answer)
        thread.start()
        _, files, _, _ = socket.recv_fds(here, 1, 1)
        os.close(files[0])
        wire.send(here, {"rows": 2, "budget": 1.0})
        said, _ = wire.receive(here)
        here.shutdown(socket.SHUT_WR)
        thread.join(WAIT)
    assert said["failed"] == "MemoryError"
    [record] = caplog.records
    line = Lines().format(record)
    assert "\n" not in line
    assert json.loads(line)["event"] == "the network failed with a batch of 2 at budget 1"
    assert "MemoryError: no room" in json.loads(line)["trace"]


def test_the_process_itself_writes_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from nestor.cli.worker import main

    def fail(*_: object, **__: object) -> None:
        raise KeyError("rows")

    loggers = [logging.getLogger(name) for name in ("nestor.serving", "uvicorn")]
    before = [(each.handlers[:], each.propagate, each.level) for each in loggers]
    monkeypatch.setattr(worker, "work", fail)
    try:
        with pytest.raises(SystemExit, match="1"):
            main("{}", "0", "4")
    finally:
        for each, (handlers, propagate, level) in zip(loggers, before, strict=True):
            each.handlers[:], each.propagate = handlers, propagate
            each.setLevel(level)
    [line] = capsys.readouterr().err.splitlines()
    assert "KeyError: 'rows'" in json.loads(line)["trace"]


# Behind the engine.


class Fragile(Gated):
    """A perishable network that is lost, and comes back, as the test says."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.alive, self.starting, self.patience, self.same = True, 3.0, 30.0, True
        self.back, self.reviving, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.failures = 0

    def run(self, items, budget):
        try:
            return super().run(items, budget)
        except LostError:
            self.alive = False
            raise

    def revive(self) -> bool:
        self.reviving.set()
        if self.failures:
            self.failures -= 1
            raise LostError("not yet")
        assert self.back.wait(WAIT)
        self.error, self.alive = None, True
        return self.same

    def close(self) -> None:
        self.closed.set()


def lost(policy: Policy = PATIENT, **options):
    """An engine whose network is shut in a batch that will lose it."""
    served = Fragile(small())
    engine = started(served, policy, **options)
    served.shut()
    served.error = LostError("killed")
    running = ask(engine, pictures())
    assert served.entered.wait(WAIT)
    return served, engine, running


def test_who_was_in_it_and_who_cannot_wait_are_told_and_who_can_wait_is_answered():
    policy, watch = Policy(target=1.0, patience=WAIT), Counted()
    served, engine, running = lost(policy, watch=watch)
    hurried, calm = ask(engine, pictures()), ask(engine, pictures(), deadline=WAIT)
    served.gate.set()
    assert kind(running) == "crashed"
    assert kind(hurried) == "restarting"
    assert served.reviving.wait(WAIT)
    assert not engine.ready
    with pytest.raises(RefusedError, match="the network was lost and is being brought back") as refused:
        engine.order(1)
    assert refused.value.kind == "restarting"
    assert refused.value.after is not None
    assert 0 < refused.value.after <= served.starting
    later = ask(engine, pictures(), deadline=WAIT)
    served.back.set()
    for future in (calm, later):
        assert future.result(WAIT).version == 1
    assert engine.ready
    assert watch.kinds == ["crashed", "restarting", "restarting", "revived"]
    assert engine.drain(WAIT)
    assert served.closed.is_set()


def test_bringing_it_back_is_tried_until_it_works_and_changed_files_are_another_version(monkeypatch, caplog):
    monkeypatch.setattr(engines, "PAUSE", 0.001)
    served, engine, running = lost()
    served.failures, served.same = 3, False
    waiting = ask(engine, pictures())
    served.gate.set()
    served.back.set()
    assert kind(running) == "crashed"
    assert waiting.result(WAIT).version == 2
    assert caplog.text.count("could not be brought back") == 3
    assert engine.drain(WAIT)


def test_a_network_lost_while_nobody_asks_is_back_before_somebody_does(monkeypatch):
    monkeypatch.setattr(engines, "LOOK", 0.001)
    served = Fragile(small())
    engine = started(served)
    served.back.set()
    served.alive = False
    assert served.reviving.wait(WAIT)
    assert ask(engine, pictures()).result(WAIT).version == 1
    assert engine.drain(WAIT)


def test_stopping_does_not_wait_for_what_nobody_needs():
    served, engine, running = lost()
    served.failures = 10**9
    served.gate.set()
    assert kind(running) == "crashed"
    assert engine.drain(WAIT)
    assert served.closed.is_set()


def test_deadlines_pass_while_a_batch_hangs_and_who_comes_is_not_promised_what_cannot_be(monkeypatch):
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    def measured(served: ServedViT, most: int) -> dict[tuple[float, int], float]:
        return {(budget, rows): 1e-3 * rows for budget in served.budgets for rows in sizes(most)}

    monkeypatch.setattr(engines, "warm_up", measured)
    clock = Clock()
    served = Fragile(small())
    engine = started(served, Policy(target=1.0, patience=60.0), clock=clock)
    # However quick it was, it is waited for; one that was slow is so for longer.
    assert served.patience == engines.PATIENCE
    served.shut()
    running = ask(engine, pictures())
    assert served.entered.wait(WAIT)
    waiting = ask(engine, pictures(), deadline=0.02)
    clock.now = 0.03
    assert kind(waiting) == "expired"
    assert engine.ready
    clock.now = 5.0
    assert not engine.ready
    with pytest.raises(RefusedError, match="the batch that runs takes longer than it should"):
        engine.order(1)
    served.gate.set()
    assert running.result(WAIT).ran == 5.0
    assert ask(engine, pictures()).result(WAIT).batch == 1
    assert engine.ready
    assert engine.drain(WAIT)


def test_an_answer_that_cannot_be_read_ends_the_process_and_no_batch_gets_anothers(tmp_path: Path, monkeypatch):
    remote, here = Remote(command(tmp_path), most=2, patience=WAIT), ServedViT(small(labels=LABELS), (0.5, 1.0))
    try:
        # What fails before anything is sent leaves the process as it was.
        with pytest.raises(RuntimeError):
            remote.run(pictures(3), 1.0)
        assert remote.alive
        assert torch.equal(remote.run(pictures(), 1.0).logits, here.run(pictures(), 1.0).logits)

        def unreadable(channel):
            channel.recv(4)
            raise ValueError("not JSON")

        with monkeypatch.context() as patch:
            patch.setattr(wire, "receive", unreadable)
            with pytest.raises(LostError, match="not JSON"):
                remote.run(pictures(), 1.0)
        assert not remote.alive
        with pytest.raises(LostError):
            remote.run(pictures(), 1.0)
        assert remote.revive()
        assert torch.equal(remote.run(pictures(2), 0.5).logits, here.run(pictures(2), 0.5).logits)
        remote.prepare = None
        with pytest.raises(ValueError, match="a new network must keep the prepare None; got Preparation"):
            remote.revive()
        assert (remote.prepare, remote.alive) == (None, False)
    finally:
        remote.close()


def test_reloading_lets_the_old_network_go_after_its_last_batch_and_a_bad_new_one_at_once():
    old, new = Fragile(small(), (0.7, 1.0)), Fragile(small(seed=1), (0.7, 1.0))
    bad = Fragile(small(), old.budgets, size=32)
    engine = started(old)
    with pytest.raises(ValueError, match="a new network must keep the input"):
        engine.reload(bad)
    assert bad.closed.is_set()
    old.shut()
    running = ask(engine, pictures())
    assert old.entered.wait(WAIT)
    reloading = threading.Thread(target=engine.reload, args=(new,))
    reloading.start()
    until(lambda: engine.version == 2)
    assert not old.closed.is_set()
    old.gate.set()
    assert running.result(WAIT).version == 1
    reloading.join(WAIT)
    # Answers are given first.
    assert old.closed.wait(WAIT)
    assert ask(engine, pictures()).result(WAIT).version == 2
    assert engine.drain(WAIT)
    assert new.closed.is_set()


# Under load, over sockets.


def test_killing_the_network_under_load_loses_nobody(tmp_path: Path):
    remotes: list[Remote] = []

    def load() -> Remote:
        remotes.append(Remote(command(tmp_path), most=4, patience=WAIT))
        return remotes[-1]

    server = Server(load, PATIENT, batch=4, port=0)
    statuses: Counter[int] = Counter()
    killed = threading.Event()
    rounds = 12

    def client(number: int) -> None:
        with httpx2.Client(base_url=server.address, timeout=4 * WAIT) as http:
            for turn in range(rounds):
                while True:
                    answer = http.post("/predict", content=png(seed=number))
                    statuses[answer.status_code] += 1
                    if answer.status_code == 200:
                        break
                    assert (answer.status_code, answer.json()["retryable"]) == (503, True)
                    assert int(answer.headers["retry-after"]) >= 1
                    # The server is there, whatever became of the network.
                    assert http.get("/v2/health/live").status_code == 200
                    killed.wait(0.05)
                if number == 0 and turn == rounds // 2:
                    os.kill(remotes[0].number, signal.SIGKILL)
                    killed.set()

    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            client(number)
        except BaseException as error:
            failures.append(error)

    clients = [threading.Thread(target=guarded, args=(number,)) for number in range(4)]
    with running(server):
        for each in clients:
            each.start()
        for each in clients:
            each.join(8 * WAIT)
        metrics = server.metrics.text(server.engine)
        first = remotes[0].number
        # A new network while somebody asks, too.
        asking = threading.Thread(target=guarded, args=(1,))
        asking.start()
        server.reload().join(8 * WAIT)
        asking.join(8 * WAIT)
    assert not failures
    assert killed.is_set()
    assert statuses[200] == 5 * rounds
    assert statuses.keys() <= {200, 503}
    assert b"nestor_revivals_total 1.0" in metrics
    assert server.engine.version == 2
    assert [remote.alive for remote in remotes] == [False, False]
    assert remotes[0].number == first
