"""The load generator: what it sends, what it gathers, and what it makes of that."""

import asyncio
import math
import signal
import threading
from typing import Any

import pytest
from test_serving_engine import PATIENT, WAIT
from test_serving_http import LABELS, network, png

from benchmarks.serve_report import Summary, claims, draw, flat, recovery, summary, table
from benchmarks.serve_traffic import Sample, capacity, drive, schedule
from nestor.serving.server import Server


def sample(due: float, step: int, **more) -> Sample:
    return Sample(due=due, step=step, **{"status": 200, "seconds": 0.01, "budget": 1.0, "right": True} | more)


def test_requests_are_due_at_random_at_the_rates_asked_for():
    due = schedule([10.0, 100.0], 20.0, seed=3)
    assert due == schedule([10.0, 100.0], 20.0, seed=3) == sorted(due)
    counts = [sum(step == each for _, step in due) for each in (0, 1)]
    for count, rate, step in zip(counts, (10, 100), (0, 1), strict=True):
        assert abs(count - 20 * rate) < 5 * math.sqrt(20 * rate)
        assert all(step * 20 <= when < (step + 1) * 20 for when, of in due if of == step)


def test_a_summary_by_hand():
    samples = [sample(0.1, 0, seconds=9.0), *(sample(1.0 + i / 10, 0, seconds=0.01 * (i + 1)) for i in range(8))]
    samples += [sample(1.9, 0, status=429), sample(1.95, 0, status=0), sample(3.5, 1, budget=0.5, right=False)]
    first, second = summary(samples, system="a", turn=0, factors=(0.3, 1.0), seconds=2.0, target=0.05)
    # What came before it had settled does not count.
    assert (first.offered, first.answered, first.refused, first.failed) == (10, 8, 1, 1)
    assert (first.kept, first.p50_ms, first.p95_ms) == (0.5, pytest.approx(50), pytest.approx(80))
    assert (second.budget, second.accuracy, second.factor) == (0.5, 0.0, 1.0)
    assert recovery(samples, 2.0, 1.0) is None
    assert recovery([*samples, sample(4.5, 1)], 2.0, 1.0) == 1.5
    assert recovery(samples, 1.0, 0.5) == 0.0


def line(system: str, **more: Any) -> Summary:
    fields: dict[str, Any] = {
        "round": 0,
        "step": 0,
        "factor": 1.0,
        "offered": 10,
        "answered": 10,
        "refused": 0,
        "failed": 0,
    }
    fields |= {"kept": 1.0, "p50_ms": 10.0, "p95_ms": 40.0, "p99_ms": 50.0, "refused_p95_ms": math.nan}
    fields |= {"budget": 1.0, "accuracy": 0.9} | more
    return Summary(system=system, **fields)


def test_what_holds_and_what_does_not():
    good = [line("elastic"), line("fixed 1", p95_ms=500.0), line("fixed 0.5", accuracy=0.8)]
    more: dict[str, Any] = {"full": "fixed 1", "target": 0.05, "recovered": [3.0, 0.0]}
    beyond = line("beyond", refused=5, refused_p95_ms=4.0)
    held = claims(good, beyond=beyond, served=95.0, bare=100.0, **more)
    assert len(held) == 9
    assert set(held.values()) == {True}
    bad = [line("elastic", p95_ms=60.0, failed=1, refused=2, accuracy=0.7), line("fixed 1")]
    slow = line("beyond", refused=0, p95_ms=60.0)
    worse: dict[str, Any] = more | {"recovered": [None]}
    assert set(claims(bad, **worse, beyond=slow, served=80.0, bare=100.0).values()) == {False}
    # Where no fixed budget keeps the target there is nothing to compare with.
    bare = claims(good[:2], **more)
    assert [so for so in bare.values() if so is None] == [None] * 4
    assert flat([50, 90, 100, 100, 101, 101])
    assert not flat([50, 90, 100, 110, 120, 130])
    assert not flat([])
    assert table(good).splitlines()[2].startswith("| elastic | 1 | 40 | 1.00 | 0.900 | 100.0% | 0 | 0 | 10 |")


def test_a_short_run_against_a_real_server():
    server = Server(lambda: network(), PATIENT, batch=4, port=0)
    thread = threading.Thread(target=server.serve_until_told, daemon=True)
    thread.start()
    while not server.engine.ready:
        threading.Event().wait(0.01)
    port = server.socket.getsockname()[1]
    pictures = [(png(seed=seed), label) for seed, label in enumerate(LABELS)]
    due = schedule([20.0, 60.0], 0.5, seed=0)
    samples = asyncio.run(drive(port, due, pictures, "&budget=1"))
    borne = asyncio.run(capacity(port, pictures, 0.1, together=2))
    server.handle_exit(signal.SIGTERM, None)
    thread.join(WAIT)
    assert [(each.due, each.step) for each in samples] == due
    assert {(each.status, each.budget) for each in samples} == {(200, 1.0)}
    assert all(each.seconds > 0 for each in samples)
    assert borne > 0
    assert len(draw({"a": samples}, seconds=0.5, factors=(1.0, 3.0), target=0.05).axes) == 3


def test_who_finds_nobody_is_lost():
    [lost] = asyncio.run(drive(1, [(0.0, 0)], [(b"", "")], ""))
    assert lost.status == 0
