"""The engine on tiny networks: the network's own answers, crashes, draining, reloading."""

import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from nets import small

from nestor.serving import engine as engines
from nestor.serving.answer import Answer
from nestor.serving.controller import Policy
from nestor.serving.engine import Engine
from nestor.serving.network import Answers, ServedViT, sizes, warm_up
from nestor.serving.order import RefusedError
from nestor.serving.scheduler import Scheduler

WAIT = 30
# Tiny networks answer within a millisecond or two; what a loaded machine adds to that is no matter here.
PATIENT = Policy(target=20.0, patience=60.0)


class Gated(ServedViT):
    """A network that waits at a gate, and fails when it is told to."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.gate.set()

    def run(self, items: torch.Tensor, budget: float) -> Answers:
        self.entered.set()
        assert self.gate.wait(WAIT)
        if self.error is not None:
            raise self.error
        return super().run(items, budget)

    def shut(self) -> None:
        """Close the gate behind whoever is in."""
        self.gate.clear()
        self.entered.clear()


class Counted:
    """Counts what an engine tells."""

    def __init__(self):
        self.batches, self.kinds = [], []

    def batch(self, batch, seconds):
        assert seconds > 0
        self.batches.append((batch.budget, batch.rows))

    def refused(self, kind):
        self.kinds.append(kind)

    def revived(self):
        self.kinds.append("revived")


def started(served: ServedViT, policy: Policy = PATIENT, **options) -> Engine:
    engine = Engine(served, policy, batch=4, **options)
    engine.start()
    return engine


def ask(engine: Engine, images: torch.Tensor, **wishes) -> Future[Answer]:
    return engine.submit(engine.order(len(images), **wishes), images)


def pictures(count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def kind(future: Future[Answer]) -> str:
    with pytest.raises(RefusedError) as refused:
        future.result(WAIT)
    return refused.value.kind


def test_what_is_served_is_what_the_network_says_offline():
    served = ServedViT(small())
    engine = started(served)
    for budget in served.budgets:
        images = pictures(2)
        answer = ask(engine, images, floor=budget, ceiling=budget).result(WAIT)
        with torch.inference_mode():
            offline = small().eval()(images, budget=budget)
        assert (answer.budget, answer.batch, answer.version) == (budget, 2, 1)
        assert answer.logits is not None
        assert answer.experts is not None
        assert offline.logits is not None
        # Another thread may add up in another order.
        torch.testing.assert_close(answer.logits, offline.logits, rtol=1e-5, atol=1e-6)
        assert torch.equal(answer.experts, offline.routings[0].index[..., 0].int())
    assert engine.drain(WAIT)


def test_requests_that_run_together_get_their_own_rows_back():
    served, watch = Gated(small()), Counted()
    engine = started(served, watch=watch)
    served.shut()
    first = ask(engine, pictures(1))
    assert served.entered.wait(WAIT)
    asked = [pictures(count, seed) for seed, count in enumerate((1, 2, 1), start=1)]
    futures = [ask(engine, images) for images in asked]
    assert engine.rows == 4
    served.gate.set()
    for images, future in zip(asked, futures, strict=True):
        answer = future.result(WAIT)
        assert answer.queue + answer.batch <= 4
        offline = served.run(images, answer.budget)
        torch.testing.assert_close(answer.logits, offline.logits, rtol=0, atol=1e-5)
    assert first.result(WAIT).batch == 1
    assert engine.drain(WAIT)
    assert sum(rows for _, rows in watch.batches) == 5


def test_a_batch_that_crashes_is_answered_and_the_next_one_runs(caplog):
    served, watch = Gated(small()), Counted()
    engine = started(served, watch=watch)
    for error in (RuntimeError("out of memory"), MemoryError(), SystemExit(1)):
        served.error = error
        future = ask(engine, pictures())
        assert kind(future) == "crashed"
    served.error = None
    assert ask(engine, pictures()).result(WAIT).logits.shape == (1, 3)
    assert watch.kinds == ["crashed"] * 3
    assert caplog.text.count("a batch of 1 failed") == 3
    assert engine.drain(WAIT)


def test_an_answer_that_is_not_finite_fails_alone():
    served = Gated(small())
    engine = started(served)
    served.shut()
    ask(engine, pictures())
    assert served.entered.wait(WAIT)
    bad, good = ask(engine, pictures() * torch.nan, key="a"), ask(engine, pictures(), key="b")
    served.gate.set()
    assert kind(bad) == "not_finite"
    assert good.result(WAIT).logits.isfinite().all()
    assert engine.drain(WAIT)


def test_draining_answers_who_is_in_and_refuses_who_comes():
    served = Gated(small())
    engine = started(served)
    served.shut()
    futures = [ask(engine, pictures(), key=str(i)) for i in range(6)]
    ordered = engine.order(1)
    engine.close()
    assert not engine.ready
    assert kind(engine.submit(ordered, pictures())) == "draining"
    with pytest.raises(RefusedError, match="the server is stopping"):
        engine.order(1)
    served.gate.set()
    assert engine.drain(WAIT)
    assert all(future.result(0).logits.shape == (1, 3) for future in futures)


def test_draining_that_takes_too_long_refuses_who_waits():
    served = Gated(small())
    engine = started(served)
    served.shut()
    running = ask(engine, pictures())
    assert served.entered.wait(WAIT)
    waiting = ask(engine, pictures())
    assert not engine.drain(0.0)
    assert kind(waiting) == "draining"
    served.gate.set()
    assert running.result(WAIT).logits.shape == (1, 3)
    assert engine.drain(WAIT)


def test_reloading_drops_nobody():
    old, new = Gated(small()), Gated(small(seed=1))
    engine = started(old)
    old.shut()
    before = ask(engine, pictures())
    assert old.entered.wait(WAIT)
    after = [ask(engine, pictures(), key=str(i)) for i in range(5)]
    engine.reload(new)
    old.gate.set()
    assert before.result(WAIT).version == 1
    for future in after:
        answer = future.result(WAIT)
        assert (answer.version, answer.served) == (2, new)
        torch.testing.assert_close(answer.logits, new.run(pictures(), answer.budget).logits, rtol=0, atol=1e-5)
    assert engine.drain(WAIT)


def test_a_network_that_breaks_what_clients_were_promised_is_not_taken():
    engine = started(ServedViT(small(), (0.7, 1.0)))
    with pytest.raises(ValueError, match="a new network must keep the budgets"):
        engine.reload(ServedViT(small(), (0.6, 1.0)))
    with pytest.raises(ValueError, match=r"keep the input Input\(shape=\(3, 16, 16\).* got Input\(shape=\(3, 32, 32\)"):
        engine.reload(ServedViT(small(), engine.served.budgets, size=32))
    for name, value in (("labels", ("a", "b", "c")), ("cells", (1, 16)), ("prepare", None)):
        other = ServedViT(small(), engine.served.budgets)
        setattr(other, name, value)
        with pytest.raises(ValueError, match=f"a new network must keep the {name}"):
            engine.reload(other)
    assert engine.version == 1
    assert engine.drain(WAIT)
    with pytest.raises(RefusedError, match="it takes no other network"):
        engine.reload(ServedViT(small(), engine.served.budgets))


@pytest.mark.parametrize("where", ["batch", "refused", "rows", "take"])
def test_the_engine_outlives_whatever_fails_around_the_network(where: str, monkeypatch, caplog):
    monkeypatch.setattr(engines, "PAUSE", 0.001)
    failures = iter([RuntimeError("broken")])

    def fail(*_: object) -> None:
        for error in failures:
            raise error

    served, watch = Gated(small()), Counted()
    engine = started(served, watch=watch)
    served.shut()
    first = ask(engine, pictures())
    assert served.entered.wait(WAIT)
    if where in ("batch", "refused"):
        monkeypatch.setattr(watch, where, fail)
        served.error = RuntimeError("lost") if where == "refused" else None
    elif where == "rows":
        monkeypatch.setattr(ServedViT, "run", lambda self, items, budget: Answers(logits=torch.zeros(9, 3)))
    else:
        take = Scheduler.take
        monkeypatch.setattr(Scheduler, "take", lambda self, now: fail() or take(self, now))
    served.gate.set()
    if where in ("refused", "rows"):
        assert kind(first) == "crashed"
    else:
        assert first.result(WAIT).batch == 1
    served.error = None
    monkeypatch.undo()
    assert ask(engine, pictures()).result(WAIT).batch == 1
    assert engine.ready
    assert engine.drain(WAIT)
    assert not engine.ready


def test_an_engine_without_its_thread_is_not_ready(monkeypatch):
    engine = started(ServedViT(small()))
    thread = threading.Thread(target=int)
    thread.start()
    thread.join(WAIT)
    monkeypatch.setattr(engine, "_thread", thread)
    assert not engine.ready
    monkeypatch.undo()
    assert engine.ready
    assert engine.drain(WAIT)


def test_what_is_being_read_is_ahead_until_it_is_read_or_cannot_be():
    engine = started(ServedViT(small()), Policy(target=20.0, capacity=1, patience=60.0))
    first = engine.order(1)
    with suppress(ValueError), engine.coming(first):
        with pytest.raises(RefusedError, match="1 pictures wait already"):
            engine.order(1)
        raise ValueError("broken")
    second = engine.order(1)
    with engine.coming(second):
        pass
    assert engine.submit(second, pictures()).result(WAIT).batch == 1
    assert engine.drain(WAIT)


def test_who_has_left_is_not_run():
    served, watch = Gated(small()), Counted()
    engine = started(served, watch=watch)
    served.shut()
    orders = [engine.order(1) for _ in range(3)]
    running = engine.submit(orders[0], pictures())
    assert served.entered.wait(WAIT)
    leaving, staying = (engine.submit(order, pictures()) for order in orders[1:])
    for _ in range(2):
        engine.forget(orders[1])
    # What runs already goes on.
    engine.forget(orders[0])
    assert leaving.cancelled()
    assert engine.rows == 1
    served.gate.set()
    assert [each.result(WAIT).batch for each in (running, staying)] == [1, 1]
    assert watch.kinds == ["left"]
    assert engine.drain(WAIT)


def test_wrong_requests():
    engine = Engine(ServedViT(small()), PATIENT, batch=4)
    with pytest.raises(RefusedError, match="not ready yet"):
        engine.order(1)
    engine.start()
    with pytest.raises(ValueError, match="at most 4 pictures; got 5"):
        engine.order(5)
    with pytest.raises(ValueError, match="the budget must be one of"):
        engine.order(1, floor=0.123, ceiling=0.123)
    order = engine.order(2)
    with pytest.raises(ValueError, match=r"images must be of shape \(2, 3, 16, 16\); got \(1, 3, 16, 16\)"):
        engine.submit(order, pictures())
    assert engine.drain(WAIT)


def test_a_full_server_says_so_before_anything_is_read():
    served, watch = Gated(small()), Counted()
    engine = started(served, replace(PATIENT, capacity=2), watch=watch)
    served.shut()
    futures = [ask(engine, pictures())]
    assert served.entered.wait(WAIT)
    futures += [ask(engine, pictures()) for _ in range(2)]
    with pytest.raises(RefusedError, match="2 pictures wait already") as refused:
        engine.order(1)
    assert refused.value.after is not None
    assert watch.kinds == ["overloaded"]
    served.gate.set()
    assert all(future.result(WAIT).logits.shape == (1, 3) for future in futures)
    assert engine.drain(WAIT)


def test_a_promise_that_no_picture_can_keep_is_not_given():
    with pytest.raises(ValueError, match=r"the target of 0 ms is shorter than one picture takes at budget"):
        started(ServedViT(small()), Policy(target=1e-9))


def test_stopping_before_the_start():
    engine = Engine(ServedViT(small()), PATIENT, batch=1)
    assert engine.drain(0.0)
    engine.start()
    assert not engine.ready


@pytest.mark.parametrize(("pace", "often"), [(1.0, 2), (1e-3, 3)])
def test_the_warm_up_runs_every_budget_at_every_size(pace: float, often: int):
    class Clocked(ServedViT):
        now, calls = 0.0, 0

        def run(self, items, budget):
            # The first call of all takes long, as it does.
            self.now += 100.0 if not self.calls else pace * budget * len(items)
            self.calls += 1
            return super().run(items, budget)

    served, cells = Clocked(small(), (0.5, 1.0)), [(budget, rows) for budget in (0.5, 1.0) for rows in (1, 2, 4, 6)]
    taken = warm_up(served, 6, clock=lambda: served.now)
    assert taken == {(budget, rows): pytest.approx(pace * budget * rows) for budget, rows in cells}
    assert served.calls == often * len(cells), "what takes long is measured once"


def test_sizes_and_budgets():
    assert sizes(1) == (1,)
    assert sizes(16) == (1, 2, 4, 8, 16)
    assert sizes(20) == (1, 2, 4, 8, 16, 20)
    with pytest.raises(ValueError, match="at least 1 picture; got 0"):
        sizes(0)
    model = small()
    served = ServedViT(model)
    assert served.budgets[-1] == 1.0
    assert served.budgets[0] - 0.01 < model.least_budget(16) <= served.budgets[0]
    assert ServedViT(small("dense")).budgets == (1.0,)
    assert ServedViT(small("dense")).cells == (0, 0)
    with pytest.raises(ValueError, match="at least one budget; got none"):
        ServedViT(model, ())
    with pytest.raises(ValueError, match="budget must lie in"):
        ServedViT(model, (0.01, 1.0))
    with pytest.raises(ValueError, match="serving needs a network with a head"):
        ServedViT(small(classes=0))
