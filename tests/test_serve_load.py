"""The load generator: what it sends, what it gathers, and what it makes of that."""

import asyncio
import json
import math
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import LABELS, network, png
from nets import small
from running import running
from test_serving_engine import PATIENT, WAIT, pictures

from benchmarks import serve_bare
from benchmarks.serve_bare import Spread, Throughput
from benchmarks.serve_draw import draw
from benchmarks.serve_faults import Looks, answered, flat, growth
from benchmarks.serve_http import Connection, anything, until
from benchmarks.serve_keep import HISTORY, keep
from benchmarks.serve_load import NOT_JUDGED, chosen, verdict
from benchmarks.serve_process import end, first_line
from benchmarks.serve_replay import replay, spread
from benchmarks.serve_report import Summary, accuracy, best, claims, keeps, recovery, summary, table
from benchmarks.serve_traffic import Ask, Sample, capacity, drive, patient, picture_ask, schedule, tensor_ask
from nestor.serving.network import ServedViT
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
    samples += [sample(1.9, 0, status=429, again=True), sample(1.95, 0, status=0), sample(0.2, 0, status=503)]
    samples += [sample(0.3, 0, status=429, seconds=0.2), sample(3.5, 1, budget=0.5, right=False)]
    first, second = summary(samples, system="a", turn=0, factors=(0.3, 1.0), seconds=2.0, target=0.05)
    # Latency counts once it has settled; whoever is lost, failed or refused counts always.
    assert (first.offered, first.answered, first.refused, first.errors, first.lost) == (13, 9, 2, 1, 1)
    assert (first.kept, first.p50_ms, first.p95_ms) == (0.5, pytest.approx(50), pytest.approx(80))
    assert (first.untold, first.refused_max_ms) == (1, pytest.approx(200))
    assert (first.accuracy, first.accuracy_offered) == (1.0, pytest.approx(9 / 13))
    assert (second.budget, second.accuracy, second.factor) == (0.5, 0.0, 1.0)


def test_full_budget_is_back_when_the_mean_of_a_second_is_and_stays():
    down = [sample(10.2, 1, budget=0.4), sample(10.8, 1, budget=1.0)]
    up = [sample(11 + i / 100, 1) for i in range(400)]
    assert recovery([*down, *up], 10.0, 1.0) == 2.0
    assert recovery(up, 11.0, 1.0) == 1.0
    assert recovery(down, 10.0, 1.0) is None
    assert recovery([*up, *(sample(15 + i / 100, 1, budget=0.4) for i in range(100))], 11.0, 1.0) is None
    # One answer of a hundred at less is no matter.
    assert recovery([*up, sample(12.005, 1, budget=0.4)], 11.0, 1.0) == 1.0
    assert recovery([], 0.0, 1.0) is None


def line(system: str, **more: Any) -> Summary:
    fields: dict[str, Any] = {"round": 0, "step": 0, "factor": 1.0, "offered": 10, "answered": 10}
    fields |= dict.fromkeys(("refused", "errors", "lost", "untold", "retried"), 0)
    fields |= {"kept": 1.0, "p50_ms": 10.0, "p95_ms": 40.0, "p99_ms": 50.0, "budget": 1.0}
    fields |= {"refused_p95_ms": math.nan, "refused_max_ms": math.nan, "accuracy": 0.9, "accuracy_offered": 0.9} | more
    return Summary(system=system, **fields)


def test_what_holds_and_what_does_not():
    good = [line("elastic"), line("fixed 1", kept=0.3), line("fixed 0.5", accuracy=0.8, accuracy_offered=0.8)]
    more: dict[str, Any] = {"full": "fixed 1", "target": 0.05, "recovered": [3.0, 0.0]}
    held = claims(good, beyond=line("beyond", refused=5, refused_max_ms=4.0), **more)
    assert len(held) == 11
    assert set(held.values()) == {True}
    bad = [line("elastic", kept=0.9, errors=1, lost=1, refused=2, accuracy_offered=0.7), line("fixed 1")]
    slow = line("beyond", refused=1, lost=1, untold=1, refused_max_ms=60.0, p95_ms=60.0)
    worse: dict[str, Any] = more | {"recovered": [None]}
    assert set(claims(bad, **worse, beyond=slow).values()) == {False}
    # Where no fixed budget keeps the target there is nothing to compare with.
    assert [so for so in claims(good[:2], **more, beyond=None).values() if so is None] == [None] * 5
    assert table(good).splitlines()[2].startswith("| elastic | 1 | 40 | 1.00 | 0.900 | 0.900 | 100.0% | 0 |  | 0 | 0 |")
    assert "the best that keeps the target is fixed 0.5" in table(good)
    assert "none keeps the target" in table(good[:2])


def test_whoever_refuses_keeps_no_promise_and_gets_nothing_right():
    choosy = line("fixed 1", answered=5, refused=5, kept=0.5, accuracy=1.0, accuracy_offered=0.5)
    found = [line("elastic"), choosy, line("fixed 0.6"), line("fixed 0.5", accuracy_offered=0.95)]
    assert accuracy(found, "fixed 1", offered=True) == 0.5
    assert accuracy(found, "fixed 1", offered=False) == 1.0
    assert not keeps(found, "fixed 1")
    assert best(found) == "fixed 0.5"
    assert not keeps(found, "nobody")


def test_which_fixed_budgets_are_compared():
    budgets = (0.42, 0.5, 0.6, 0.8, 1.0)
    assert chosen(None, budgets) == (1.0, 0.65, 0.5, 0.42)
    assert chosen("all", budgets) == budgets[::-1]
    assert chosen(".7", budgets) == (1.0, 0.7)
    with pytest.raises(ValueError, match=r"fixed budgets must lie from 0.42 to 1; got 0.3"):
        chosen("0.3", budgets)


def test_memory_is_judged_by_its_slope():
    seconds = [2.0 * i for i in range(300)]
    # What a server takes while it warms up is not counted.
    assert flat(seconds, [100 + min(i, 100) for i in range(300)])
    assert flat(seconds, [200 + i % 5 for i in range(300)])
    rising = [200 + 0.1 * i for i in range(300)]
    found = growth(seconds, rising)
    assert found["megabytes_an_hour"] == pytest.approx(180)
    assert found["percent_an_hour"] == pytest.approx(100 * 180 / 219.95, rel=1e-3)
    assert not flat(seconds, rising)
    assert not flat([], [])
    assert not flat(seconds, [200.0] * 300, unread=30)
    assert answered([sample(0, 0)] * 19 + [sample(0, 0, status=429)])
    assert not answered([sample(0, 0)] * 99 + [sample(0, 0, status=503)])
    assert not answered([sample(0, 0), sample(0, 0, status=429)])


def test_a_look_that_fails_does_not_end_the_watch():
    over, found, turns = threading.Event(), Looks(), iter(range(3))

    def memory() -> float:
        turn = next(turns)
        if turn == 2:
            over.set()
        if turn == 1:
            raise FileNotFoundError(2, "No such file", "/proc/1/statm")
        return 100.04

    found.watch(memory, over, 0.001)
    assert (found.megabytes, found.unread) == ([100.0, 100.0], ["FileNotFoundError: No such file"])
    assert len(found.seconds) == 2


def test_a_replay_finds_what_is_not_the_networks_own(one_thread: None):
    served = ServedViT(small(labels=LABELS), (0.5, 1.0))
    items = {number: pictures(1) + number for number in range(3)}
    said = {number: served.run(item.expand(4, -1, -1, -1), 0.5).logits[0] for number, item in items.items()}
    told = [sample(0, 0, budget=0.5, batch=4, picture=n, logits=tuple(rows.tolist())) for n, rows in said.items()]
    chances = [sample(0, 0, budget=0.5, picture=n, chance=float(rows.softmax(-1).max())) for n, rows in said.items()]
    found = replay(served, items, [*told, *chances, sample(0, 0, picture=9), sample(0, 0, status=429)])
    assert (found.logits, found.chances, found.batches, found.same, found.equal_batch) == (3, 3, (4,), 1.0, 0.0)
    assert set(found.holds("float32").values()) == {True}
    assert list(found.holds("bfloat16").values()) == [True, None]
    lie = replace(told[0], logits=tuple(0.1 + each for each in told[0].logits))
    wrong = replay(served, items, [lie, *told[1:], *chances])
    assert wrong.equal_batch == pytest.approx(0.1, rel=1e-3)
    assert set(wrong.holds("float32").values()) == {False}
    assert set(replay(served, items, []).holds("float32").values()) == {None}
    assert [each.due for each in spread([sample(i, 0) for i in range(10)], 5)] == [0, 2, 4, 6, 8]


def test_throughput_is_judged_everywhere():
    def cell(share: float) -> Throughput:
        one, same = Spread(median=share, low=0.8, high=1.0), Spread(median=10.0, low=9.0, high=11.0)
        rates = {"bare": same, "tensors": same, "pictures": same}
        return Throughput(batch=4, budget=0.5, tensors_share=one, pictures_share=one, **rates)

    assert set(serve_bare.holds([cell(0.9), cell(1.0)]).values()) == {True}
    assert set(serve_bare.holds([cell(0.89), cell(1.0)]).values()) == {False}
    row = "| 4 | 0.5 | 10.0 (9.0 to 11.0) | 10.0 (9.0 to 11.0) | 0.90 (0.80 to 1.00) |"
    assert serve_bare.table([cell(0.9)]).splitlines()[2].startswith(row)
    assert serve_bare._spread([1.0, 2.0, 3.0]) == Spread(median=2.0, low=1.5, high=2.5)
    assert serve_bare._spread([1.0]) == Spread(median=1.0, low=1.0, high=1.0)


def test_a_quick_run_is_not_judged():
    assert verdict({"it works": True}, judged=False) == f"{NOT_JUDGED}\n"
    words = "- holds: a\n- FAILS: b\n- not measured: c\n"
    assert verdict({"a": True, "b": False, "c": None}, judged=True) == words


@pytest.mark.parametrize(
    ("precision", "programs", "name"),
    [
        ("float32", False, "serve_load"),
        ("bfloat16", False, "serve_load-bfloat16"),
        ("bfloat16", True, "serve_load-openvino-bfloat16"),
    ],
)
def test_what_was_found_is_kept_without_naming_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, programs: bool, name: str
):
    monkeypatch.setattr("benchmarks.serve_keep.HISTORY", tmp_path / "history")
    machine = {"processor": "Some(R) CPU", "threads": "2"}
    report = {"precision": precision, "programs": programs, "machine": machine}
    report["steps"] = [{"p95_ms": math.nan, "kept": 1 / 3}]
    runs, more = {"a": [sample(0.5, 0)]}, {"seconds": 1.0, "factors": (1.0,), "target": 0.05}
    places = keep(report, "| a |\n", [tmp_path / "out", tmp_path / "history"], runs, **more)
    assert places == [tmp_path / "out", tmp_path / "history" / "some-cpu-2-threads" / "serving"]
    for place in places:
        assert sorted(file.name for file in place.iterdir()) == [f"{name}.{e}" for e in ("json", "md", "png")]
        found = json.loads((place / f"{name}.json").read_text())
        assert found["steps"] == [{"p95_ms": None, "kept": 0.333333}]
        assert b"Software" not in (place / f"{name}.png").read_bytes()
    assert HISTORY.is_dir()


def test_a_short_run_against_a_real_server():
    server = Server(lambda: network(), PATIENT, batch=4, port=0, name="served")
    # Without it each answer on a connection that is used again would take 40 ms more.
    assert server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    port = server.socket.getsockname()[1]
    asks = [picture_ask(png(seed=seed), picture=seed, label=label) for seed, label in enumerate(LABELS)]
    wishes = {"budget": 0.5}
    asks.append(tensor_ask("images", pictures(1), wishes, picture=3, place=0))
    due = schedule([20.0, 60.0], 0.5, seed=0)
    with running(server):
        samples = asyncio.run(drive(port, due, asks))
        borne = asyncio.run(capacity(port, patient(asks), 0.1, together=2))
    assert [(each.due, each.step) for each in samples] == due
    assert {each.status for each in samples} == {200}
    assert all(each.seconds > 0 and each.batch > 0 and not each.retried for each in samples)
    told = [each for each in samples if each.logits]
    assert told
    assert {(each.picture, each.budget, len(each.logits)) for each in told} == {(3, 0.5, 3)}
    assert all(1 / 3 <= each.chance <= 1 for each in samples if not each.logits)
    offline = network().run(pictures(1), 0.5).logits[0]
    torch.testing.assert_close(torch.tensor(told[0].logits), offline, rtol=0, atol=1e-5)
    assert {each.right for each in told} == {int(offline.argmax()) == 0}
    assert borne > 0
    assert len(draw({"a": samples}, seconds=0.5, factors=(1.0, 3.0), target=0.05).axes) == 3


def test_who_finds_nobody_is_lost():
    [lost] = asyncio.run(drive(1, [(0.0, 0)], [Ask(path="/", body=b"")]))
    assert lost.status == 0
    with pytest.raises(TimeoutError, match=r"did not answer /x as it should within 0\.2 s"):
        asyncio.run(until(1, "/x", anything, 0.2))


@pytest.mark.parametrize(("idle", "closes", "retried"), [(True, True, True), (False, True, None), (True, False, None)])
def test_only_what_a_server_closed_when_idle_is_sent_again(
    idle: bool, closes: bool, retried: bool | None, monkeypatch: pytest.MonkeyPatch
):
    """A connection that breaks on its second request: before any byte, or in the middle of the answer."""
    monkeypatch.setattr("benchmarks.serve_http.IDLE", 0.0 if idle else 60.0)
    seen: list[list[None]] = []
    handlers: list[asyncio.Task[Any] | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        seen.append([])
        while await reader.readline():
            while await reader.readline() != b"\r\n":
                pass
            seen[-1].append(None)
            if len(seen) == 1 and len(seen[0]) == 2:
                writer.write(b"" if closes else b"HTTP/1.1 200 OK\r\n")
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()
        await writer.wait_closed()

    async def run() -> bool | None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        connection = Connection(server.sockets[0].getsockname()[1])
        try:
            assert not (await connection.ask("GET", "/")).retried
            return (await connection.ask("GET", "/")).retried
        except OSError:
            return None
        finally:
            connection.close()
            server.close()
            await asyncio.gather(*(handler for handler in handlers if handler is not None))

    assert asyncio.run(run()) is retried


def test_a_server_that_says_nothing_is_not_waited_for():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        with pytest.raises(TimeoutError, match=r"said nothing for 0\.1 s"):
            first_line(process, 0.1)
        end(process)
    assert process.returncode == -signal.SIGTERM
    for code, line in (("print('http://127.0.0.1:1 b\\nmore')", "http://127.0.0.1:1 b"), ("", "")):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert first_line(process, WAIT) == line
