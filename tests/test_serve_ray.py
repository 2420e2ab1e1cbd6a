"""What the try on Ray judges, without Ray: statuses, which replicas served, and whose answers they are."""

import asyncio
import json
import subprocess
from typing import Any

import pytest
import torch
from nets import small
from test_serving_engine import WAIT, pictures

from benchmarks.serve_http import Reply
from benchmarks.serve_ray import alive, ask, claims, difference, served_by, statuses, wait
from benchmarks.serve_traffic import tensor_ask
from nestor.serving.network import ServedViT


def reply(status: int = 200, logits: torch.Tensor | None = None, budget: float = 0.5) -> Reply:
    told: dict[str, Any] = {"parameters": {"budget": budget}}
    told["outputs"] = [] if logits is None else [{"name": "logits", "data": logits.flatten().tolist()}]
    return Reply(status=status, headers={}, body=json.dumps(told).encode())


def metrics(pictures: int, seconds: float) -> str:
    lines = [f'nestor_pictures_total{{budget="1"}} {pictures}.0', f"nestor_batch_seconds_sum {seconds}"]
    return "\n".join(lines)


def test_replicas_are_told_apart_by_what_they_have_done():
    found = served_by([metrics(120, 1.25), metrics(80, 1.5), metrics(120, 1.25), metrics(0, 0.0)])
    assert found == {1.25: 120.0, 1.5: 80.0}


def test_what_holds_and_what_does_not():
    rounds = [[(0, reply())] * 3 + [(1, reply(429))], [(0, reply())], [(0, reply())]]
    assert set(claims(rounds, {1.0: 2.0, 2.0: 1.0}, 2, 1e-6).values()) == {True}
    broken = [[(0, reply())], [(0, None), (0, reply(500))], []]
    assert statuses(broken[1]) == {0: 1, 500: 1}
    assert set(claims(broken, {1.0: 3.0}, 2, 1e-3).values()) == {False}
    assert not claims(rounds, {}, 2, 0.0)["every replica serves"]


def test_answers_are_held_against_the_network(one_thread: None):
    served, items = ServedViT(small(labels=("a", "b", "c")), (0.5, 1.0)), [pictures(1), pictures(1) + 1]
    said = [served.run(item, 0.5).logits for item in items]
    own = [(number, reply(logits=logits)) for number, logits in enumerate(said)]
    assert difference(served, items, [*own, (0, None), (1, reply(429))]) == 0
    assert difference(served, items, [*own, (0, reply(logits=said[0] + 0.25))]) == pytest.approx(0.25, rel=1e-3)
    # Another budget gives another answer.
    assert difference(served, items, [(0, reply(logits=said[0], budget=1.0))]) > 1e-3


def test_nothing_is_waited_for_without_end():
    with pytest.raises(TimeoutError, match="a change took more than 0 s"):
        wait(lambda: False, 0.0, "a change")
    wait(lambda: True, 0.0, "a change")
    # Where nobody listens, every request is one that broke.
    assert statuses(asyncio.run(ask(1, 5, 2, [tensor_ask("images", pictures(1))]))) == {0: 5}


def test_replicas_are_found_among_the_processes_that_were_begun_here():
    assert alive() == []
    command = ["bash", "-c", "exec -a ray::ServeReplica:default sleep 60"]
    with subprocess.Popen(command) as process:
        wait(lambda: alive() == [process.pid], WAIT, "a process's name")
        process.kill()
    assert alive() == []
