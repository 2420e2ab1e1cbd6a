from statistics import median
from types import SimpleNamespace

import pytest
import torch

from nestor.machine import here, processor
from nestor.measure import clock
from nestor.measure.clock import machine, race


def test_candidates_take_turns():
    calls: list[str] = []
    found = race({name: lambda n=name: calls.append(n) for name in "abc"}, rounds=3, warmup=2)
    assert calls == ["a", "b", "c"] * 5
    assert list(found) == ["a", "b", "c"]
    assert all(timing.rounds == 3 for timing in found.values())


def test_medians_and_quartiles_of_what_the_clock_says(monkeypatch):
    ticks = iter([0.0, 10.0, 10.004, 20.0, 20.001, 30.0, 30.003, 40.0, 40.002, 50.0, 50.005])
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    timing = race({"a": lambda: None}, rounds=5, warmup=1)["a"]
    taken = [4, 1, 3, 2, 5]
    assert timing.median_ms == pytest.approx(median(taken))
    assert (timing.low_ms, timing.high_ms) == (pytest.approx(2), pytest.approx(4))


def test_one_round_has_no_spread():
    timing = race({"a": lambda: None}, rounds=1, warmup=0)["a"]
    assert timing.low_ms == timing.median_ms == timing.high_ms


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one candidate; got none"):
        race({})
    with pytest.raises(ValueError, match="at least 1 round and no negative warmup; got 0 and 3"):
        race({"a": lambda: None}, rounds=0)


def test_the_machine_is_described():
    facts = machine()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == str(torch.get_num_threads())
    assert all(facts[name] for name in ("processor", "cores", "system", "python"))


def test_the_processor_is_read_from_the_listing(tmp_path):
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nmodel name\t: Some Processor 3000\nflags\t: a b\n")
    assert processor(listing) == "Some Processor 3000"
    assert processor(tmp_path / "missing")


def test_the_place_of_work_is_named_with_its_threads(one_thread):
    assert here(torch.device("cpu")) == f"{processor()} with 1 thread"
    torch.set_num_threads(2)
    assert here(torch.device("cpu")) == f"{processor()} with 2 threads"
    assert here(torch.device("meta")) == "meta"
