"""Budgets in time: tables, what they come to, and how they are kept."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_vit import NARROWED, SKIPPING, tiny
from typer.testing import CliRunner

import nestor
from nestor.cli import app
from nestor.data import Pictures
from nestor.machine import here
from nestor.measure import clock
from nestor.measure.hardness import swing
from nestor.measure.latency import latency_table, milliseconds
from nestor.models.latency import LatencyTable, joined
from nestor.models.saved import load_model, save_model
from nestor.models.vit import ViT
from nestor.types import Latency

BUDGETS = (0.4, 0.6, 0.8, 1.0)


def table(ms=(4.0, 8.0, 10.0, 20.0), **changes) -> LatencyTable:
    """A table for this machine and pictures of 16 pixels."""
    fields = {"machine": here(torch.device("cpu")), "precision": "float32", "patches": 16, "batch": 2}
    return LatencyTable(**fields | {"budgets": BUDGETS[-len(ms) :], "ms": ms} | changes)


def timed(*tables: LatencyTable) -> ViT:
    model = tiny(NARROWED, classes=2)
    model.latencies = tables or (table(),)
    return model


@pytest.fixture
def fake(monkeypatch):
    """A clock by which a call takes one millisecond for each million multiply-accumulates of its batch, plus one."""
    now, run = [0.0], ViT.run

    def counted(self, images, counts):
        now[0] += 1e-3 + len(images) * self.macs(counts) * 1e-9
        return run(self, images, counts)

    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(ViT, "run", counted)


@pytest.mark.parametrize(
    ("ms", "wanted"), [(4, 0.4), (5, 0.45), (8, 0.6), (9.5, 0.75), (10, 0.8), (15, 0.9), (20, 1), (1e9, 1)]
)
def test_the_largest_budget_that_fits_and_on_along_a_straight_line(ms, wanted):
    assert table().fraction(ms) == pytest.approx(wanted)


def test_a_budget_that_was_no_faster_than_a_larger_one_is_passed_over():
    slow = table((4.0, 12.0, 10.0, 9.0))
    assert slow.fraction(8) == pytest.approx(0.5)
    assert slow.fraction(9) == 1


@given(st.lists(st.floats(0.1, 100), min_size=4, max_size=4), st.floats(0.1, 200), st.floats(0.1, 200))
def test_more_time_never_gives_less_and_what_was_measured_fits(ms, one, other):
    measured = table(tuple(ms))
    low, high = sorted((one, other))
    if low < min(ms):
        with pytest.raises(ValueError, match="latency must be at least"):
            measured.fraction(low)
        return
    assert measured.fraction(low) <= measured.fraction(high)
    fitting = [budget for budget, time in zip(BUDGETS, ms, strict=True) if time <= low]
    assert max(fitting) <= measured.fraction(low) <= 1
    at = BUDGETS.index(max(fitting))
    assert at == 3 or measured.fraction(low) <= BUDGETS[at + 1]


def test_a_latency_sets_the_dial_and_goes_with_a_call():
    model, x = timed(), torch.randn(2, 3, 16, 16)
    model.budget = Latency(ms=9)
    assert model.budget == pytest.approx(0.7)
    assert torch.equal(model(x).logits, model(x, budget=0.7).logits)
    assert torch.equal(model(x, budget=Latency(ms=6)).logits, model(x, budget=0.5).logits)
    assert model.budget == pytest.approx(0.7)
    # A last, smaller batch is run as the others are when the latency says so.
    assert torch.equal(model(x[:1], budget=Latency(ms=6, batch=2)).logits, model(x[:1], budget=0.5).logits)


def test_of_several_batches_the_one_of_the_call_counts():
    model, x = timed(table(), table((1.0, 2.0, 3.0, 4.0), batch=1)), torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"measured for batches of 1, 2; got none .* Latency\(ms=8, batch=1\)"):
        model.budget = Latency(ms=8)
    model.budget = Latency(ms=3, batch=1)
    assert model.budget == pytest.approx(0.8)
    assert torch.equal(model(x[:1], budget=Latency(ms=2)).logits, model(x[:1], budget=0.6).logits)
    assert torch.equal(model(x, budget=Latency(ms=8)).logits, model(x, budget=0.6).logits)


def test_the_precision_is_that_of_the_weights():
    model = timed(table(), table((1.0, 2.0), precision="bfloat16"))
    model.budget = Latency(ms=8)
    assert model.budget == pytest.approx(0.6)
    model.to(torch.bfloat16).budget = Latency(ms=2)
    assert model.budget == 1


@pytest.mark.parametrize(
    "changes", [{"machine": "Another Processor"}, {"patches": 25}, {"batch": 3}, {"precision": "bfloat16"}]
)
def test_what_was_measured_under_other_conditions_is_refused_with_the_command(changes):
    x = torch.randn(2, 3, 16, 16)
    command = r"nestor clock FOLDER --size 16 --batches 2 --precisions float32, or model = nestor.clock"
    with pytest.raises(ValueError, match=r"got batches of 2 at 16 patches, float32, on .*" + command) as error:
        timed(table(**changes))(x, budget=Latency(ms=8))
    assert all(str(value) in str(error.value) for value in changes.values())
    if "batch" not in changes:
        with pytest.raises(ValueError, match="got batches of 1 at 16 patches"):
            timed(table(**changes)).budget = Latency(ms=8)


def test_bad_input_is_refused_with_the_repair():
    model = tiny(NARROWED)
    with pytest.raises(ValueError, match=r"and measured was nothing. Measure it here: nestor clock"):
        model.budget = Latency(ms=8)
    assert model.budget == 1
    with pytest.raises(ValueError, match=r"at least 4 ms, .* the full network takes 20 ms; got 3 ms. Allow more"):
        timed().budget = Latency(ms=3)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"under autocast. Convert the network"):
        timed()(torch.randn(2, 3, 16, 16), budget=Latency(ms=8))
    for ms in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive number of milliseconds"):
            Latency(ms=ms)
    with pytest.raises(ValueError, match="batch of a latency must be at least 1; got 0"):
        Latency(ms=1, batch=0)
    for budgets in ((), (0.5, 0.4, 1.0), (0.4, 0.8)):
        with pytest.raises(ValueError, match="budgets of a table must increase to 1"):
            table(budgets=budgets)
    for times in ((1.0, 2.0), (0.0, 1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="positive time for each of its 4 budgets"):
            table(times, budgets=BUDGETS)
    with pytest.raises(ValueError, match="batch of at least 1 and 2 points; got 1 and 1"):
        latency_table(model, size=16, points=1)
    with pytest.raises(ValueError, match="precision must be among float32, bfloat16; got 'int8'"):
        latency_table(model, size=16, precision="int8")
    with pytest.raises(ValueError, match="multiple of the patch, 4; got 18"):
        latency_table(model, size=18)
    with pytest.raises(ValueError, match="clock needs batches from 1 on"):
        nestor.clock(model, batches=())


def test_a_ladder_is_timed_from_the_least_budget_to_the_full_one(fake):
    model = tiny(SKIPPING)
    found = latency_table(model, size=16, batch=3, points=5, rounds=2)
    least = model.least_budget(16)
    plans = [model.plan(16, least + (1 - least) * i / 4) for i in range(5)]
    assert found.budgets == pytest.approx([model.macs(plan) / model.full_macs(16) for plan in plans])
    assert (found.budgets[0], found.budgets[-1]) == (least, 1)
    assert found.ms == pytest.approx([1 + 3 * model.macs(plan) / 1e6 for plan in plans])
    assert found.conditions == (here(torch.device("cpu")), "float32", 16, 3)
    assert milliseconds(model, torch.randn(1, 3, 16, 16), plans[:2], rounds=1) == pytest.approx(
        [1 + model.macs(plan) / 1e6 for plan in plans[:2]]
    )


def test_budgets_at_which_the_same_is_done_count_once(fake):
    model = tiny(NARROWED)
    found = latency_table(model, size=4, points=20, rounds=1)
    plans = [model.plan(1, budget) for budget in found.budgets]
    assert plans == [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    dense = latency_table(tiny(), size=16, points=4, rounds=1)
    assert dense.budgets == (1.0,)


def test_clocking_keeps_the_budget_in_time(fake):
    model = tiny(NARROWED)
    model.latencies = (table(batch=7), table(batch=1))
    state = torch.random.get_rng_state()
    known = nestor.clock(model, batches=(1, 2), rounds=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.latencies == (table(batch=7), table(batch=1))
    assert [measured.batch for measured in known.latencies] == [7, 1, 2]
    # By this clock time follows the multiply-accumulates, so that both budgets come to the same.
    known.budget = Latency(ms=1 + 0.6 * 2 * model.full_macs(16) / 1e6, batch=2)
    assert known.budget == pytest.approx(0.6)
    assert model.budget == 1


def test_of_two_tables_for_the_same_conditions_the_new_one_stays():
    new = table((1.0, 2.0, 3.0, 4.0))
    assert joined([table(), table(batch=1)], [new]) == (new, table(batch=1))


def test_times_are_saved_beside_the_network_and_removed_with_it(tmp_path):
    model = timed(table(), table(batch=1))
    save_model(model, tmp_path)
    assert load_model(tmp_path).latencies == model.latencies
    save_model(tiny(NARROWED), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("config.json", "model.safetensors", "preprocessor_config.json")
    ]
    assert load_model(tmp_path).latencies == ()


@pytest.mark.parametrize("change", ["", "{}", "[1]", '[{"ms": 3}]', "budgets"])
def test_damaged_times_are_refused(tmp_path, change):
    save_model(timed(), tmp_path)
    file = tmp_path / "latency.json"
    broken = [json.loads(file.read_text())[0] | {"budgets": [0.5, 0.4]}]
    file.write_text(json.dumps(broken) if change == "budgets" else change)
    with pytest.raises(ValueError, match=r"latency.json holds no latencies .* Remove it and measure again"):
        load_model(tmp_path)


def test_the_command_keeps_times_beside_the_network(tmp_path, fake):
    save_model(timed(), tmp_path)
    command = ["clock", str(tmp_path), "--batches", "1,3", "--rounds", "1"]
    for _ in range(2):
        said = CliRunner().invoke(app, command)
        assert said.exit_code == 0, said.output
        assert "float32, batch 3" in said.stdout
        assert "1.000" in said.stdout
        assert [known.batch for known in load_model(tmp_path).latencies] == [2, 1, 3]
    refused = CliRunner().invoke(app, ["clock", str(tmp_path / "none")])
    assert refused.exit_code == 2
    assert "holds none. Make one: nestor nest" in refused.stderr


def pictures(count: int) -> Pictures:
    draw = np.random.default_rng(0)
    items = tuple(Image.fromarray(draw.integers(0, 200, (16, 16, 3), dtype=np.uint8)) for _ in range(count))
    names = tuple(str(i) for i in range(count))
    return Pictures(items=items, rows=tuple(range(count)), size=16, classes=(), labels=(-1,) * count, names=names)


@pytest.mark.parametrize("by", [0.2, -0.2, 0.0])
def test_a_swing_gives_the_hard_third_of_each_batch_more(by):
    model, data, budget = tiny(NARROWED), pictures(10), 0.6
    found = swing(model, data, budget, by, batch=6)
    images = torch.stack([data[i][0] for i in range(10)])
    rows, spent = [], []
    for part in (images[:6], images[6:]):
        scores = model(part).routings[0].scores[..., -1].mean(1)
        third = len(part) // 3
        for image, place in zip(part, scores.argsort().argsort().tolist(), strict=True):
            share = budget + by * ((place >= len(part) - third) - (place < third))
            one, full = model(image[None], budget=share).tokens, model(image[None]).tokens
            cosine = torch.cosine_similarity(one, full, dim=-1)[0]
            rows.append(torch.stack([cosine[0], cosine[1:].mean()]))
            spent.append(model.macs(model.plan(16, share)) / model.full_macs(16))
    assert found.unequal == pytest.approx(torch.stack(rows).mean(0).tolist(), abs=1e-5)
    assert found.unequal_spent == pytest.approx(sum(spent) / 10)
    assert max(found.equal_spent, found.unequal_spent) <= budget
    assert found.pays == (found.unequal[0] > found.equal[0])
    if by == 0:
        assert found.equal == pytest.approx(found.unequal)


def test_a_swing_needs_experts_and_budgets():
    with pytest.raises(ValueError, match=r"this one has one expert. Make it elastic"):
        swing(tiny(), pictures(3), 0.5, 0.1)
    with pytest.raises(ValueError, match="budget must lie in"):
        swing(tiny(NARROWED), pictures(3), 0.5, 0.6)
