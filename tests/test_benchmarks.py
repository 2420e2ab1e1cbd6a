import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from benchmarks import runtimes
from benchmarks.__main__ import app
from benchmarks.floor import Matmul, Rates
from benchmarks.judge import judge
from benchmarks.keep import keep
from benchmarks.networks import Logits, Networks, build
from benchmarks.onnx_graph import vit_graph
from benchmarks.options import choose
from benchmarks.plot import draw
from benchmarks.races import timed
from benchmarks.record import Candidate, Report
from benchmarks.runtimes import UnavailableError
from benchmarks.settings import SIZES, Cell, Settings, grid
from benchmarks.show import show
from benchmarks.speed import measure
from nestor.measure.clock import Timing

TINY = Settings(
    cells=grid(["nano"], [2], ["float32", "bfloat16"], side=64),
    training=(Cell(size="nano", side=32, batch=2, precision="bfloat16"),),
    training_budget=0.7,
    budgets=(1.0, 0.8, 0.1),
    ways=("eager",),
    classes=10,
    rounds=1,
    cube=16,
    memory=1 << 12,
    operators=3,
)


@pytest.fixture(scope="module")
def report() -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure(TINY, lambda line: None)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return build(SIZES["nano"], side=64, patch=16, classes=10)


def test_every_cell_has_its_rows(report: Report):
    first, second, forward, step = report.cells
    assert (first, second) == TINY.cells
    assert [cell.work for cell in (forward, step)] == ["forward", "step"]
    for cell in (first, second):
        rows = {(row.name, row.budget) for row in report.rows if row.cell == cell}
        missing = {(one.name, one.budget) for one in report.absent if one.cell == cell.title}
        dense = {(name, 1.0) for name in ("ours", "timm", "transformers", "onnxruntime", "openvino")}
        nested = {(name, budget) for name in ("nested", "nested published") for budget in TINY.budgets}
        merged = {("merged", budget) for budget in TINY.budgets[1:]}
        assert rows | missing == dense | nested | merged
        assert not rows & missing
        assert {("nested", 0.1), ("nested published", 0.1), ("merged", 0.1)} <= missing
    for cell in (forward, step):
        found = {row.name: row.kind for row in report.rows if row.cell == cell}
        assert found == {"ours": "dense", "timm": "dense", "transformers": "dense", "nested": "nested"}


def test_the_numbers_of_a_row_agree_with_one_another(report: Report):
    for cell in report.cells:
        rows = [row for row in report.rows if row.cell == cell]
        dense = {row.name: row.timing.median_ms for row in rows if row.kind == "dense"}
        whole = next(row.macs for row in rows if row.kind == "dense")
        for row in rows:
            ms = row.timing.median_ms
            assert 0 < row.timing.low_ms <= ms <= row.timing.high_ms
            assert row.speed_up == pytest.approx(min(dense.values()) / ms)
            assert row.efficiency == pytest.approx(row.speed_up * row.macs / whole)
            assert row.against == pytest.approx({name: other / ms for name, other in dense.items()})
            assert row.speed_up == pytest.approx(min(row.against.values()))
            assert row.over_floor * row.floor_ms == pytest.approx(ms)
            assert row.kind == "dense" or row.budget == 1 or row.macs <= row.budget * 1.01 * whole


def test_reasons_are_given_for_what_is_missing(report: Report):
    reasons = {(one.cell, one.name): one.reason for one in report.absent}
    half = TINY.cells[1].title
    assert reasons[half, "onnxruntime"] == "no bfloat16 on CPUs"
    assert reasons[half, "nested"].startswith("budget must lie in")


def test_operators_add_up_to_named_ones_and_the_rest(report: Report):
    for cell in TINY.cells:
        mine = [one for one in report.operators if one.cell == cell.title]
        networks = {one.network for one in mine}
        assert networks == {"ours", "timm", "transformers", "nested 1", "nested 0.8"}
        assert len({one.operator for one in mine} - {"others"}) == TINY.operators
        assert {one.network for one in mine if one.operator == "others"} == networks
        assert all(one.ms > 0 and one.calls >= 0 for one in mine)


def test_a_run_is_kept_as_numbers_and_a_figure(report: Report, tmp_path: Path):
    numbers, figure = keep(report, tmp_path / "history", tmp_path / "figures")
    assert numbers.parent == tmp_path / "history" / report.place
    assert numbers.name == f"{report.date.replace(':', '')}-{report.sources[:8]}.json"
    data = json.loads(numbers.read_text())
    assert len(data["rows"]) == len(report.rows)
    assert data["rows"][0]["speed_up"] == pytest.approx(report.rows[0].speed_up, rel=1e-5)
    assert data["machine"] == report.machine
    assert set(data["versions"]) >= {"nestor", "torch", "timm", "transformers", "onnxruntime", "openvino", "compiler"}
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_machine_gives_its_folder_a_plain_name(report: Report):
    other = replace(report, machine={"processor": "Intel(R) Core(TM) i9 @ 3.6GHz", "threads": "2"})
    assert other.place == "intel-core-i9-3-6ghz-2-threads"


def test_tables_and_figure_show_every_network(report: Report):
    console = Console(width=160, record=True, file=StringIO())
    show(report, console)
    text = console.export_text()
    for row in report.rows:
        assert row.name in text
        assert row.cell.title in text
    assert text.count(" * ") >= len(report.cells)
    figure = draw(report)
    titled = [axes for axes in figure.axes if axes.get_title("left")]
    assert len(titled) == len(report.cells)


def test_speed_ups_by_hand():
    cell = Cell(size="nano", batch=1, precision="float32")
    kinds = {"a": ("dense", 8, 20.0), "b": ("dense", 8, 10.0), "n": ("nested", 4, 4.0)}
    timings = {
        Candidate(name=name, kind=kind, budget=1.0, macs=macs): Timing(median_ms=ms, low_ms=ms, high_ms=ms, rounds=1)
        for name, (kind, macs, ms) in kinds.items()
    }
    rows = {row.name: row for row in judge(cell, timings, dict.fromkeys(timings, 2.0))}
    assert rows["n"].against == {"a": 5.0, "b": 2.5}
    assert (rows["n"].speed_up, rows["n"].reduction, rows["n"].efficiency) == (2.5, 2.0, 1.25)
    assert (rows["a"].speed_up, rows["b"].speed_up, rows["n"].over_floor) == (0.5, 1.0, 2.0)
    nested = {candidate: timing for candidate, timing in timings.items() if candidate.kind == "nested"}
    with pytest.raises(ValueError, match="at least one dense candidate; ViT-nano, 224 px, batch 1, float32 has none"):
        judge(cell, nested, dict.fromkeys(nested, 2.0))


def test_floors_by_hand():
    slow, fast = (Matmul(precision="float32", rows=1, inputs=1, outputs=1, gflops=gflops) for gflops in (10.0, 100.0))
    rates = Rates(matmuls=(slow, fast), memory=10.0)
    cell = Cell(size="nano", batch=2, precision="float32", side=16)
    # 2 pictures, 2 operations a multiply-accumulate, 10^11 a second.
    assert rates.floor_ms(cell, 10**9, 10) == pytest.approx(40.0)
    assert rates.floor_ms(replace(cell, work="step"), 10**9, 10) == pytest.approx(120.0)
    # 4 bytes a weight, 10^10 a second; the pictures have 1536 values.
    assert rates.floor_ms(cell, 1, 10**8 - 1536) == pytest.approx(40.0)


def test_impatience_leaves_three_rounds():
    calls: list[str] = []
    work = {name: lambda n=name: calls.append(n) for name in "ab"}
    found = timed(work, replace(TINY, rounds=5, seconds=0.0), "nothing")
    assert calls == ["a", "b"] * 4
    assert {name: timing.rounds for name, timing in found.items()} == {"a": 3, "b": 3}
    assert timed(work, replace(TINY, rounds=5, seconds=60.0), "nothing")["a"].rounds == 5
    assert timed(work, replace(TINY, rounds=2, seconds=0.0), "nothing")["a"].rounds == 2


@torch.inference_mode()
def test_all_compute_the_same(networks: Networks):
    images = torch.randn(2, 3, 64, 64)
    wanted = networks.timm(images)
    assert wanted.abs().max() > 0.01
    found = {
        "ours": networks.dense(images).logits,
        "nested": Logits(networks.nested, 1.0)(images),
        "published": Logits(networks.published, 1.0)(images),
        "merged": Logits(networks.merged, 1.0)(images),
        "onnxruntime": torch.tensor(runtimes.onnxruntime(networks.plain, images)()),
    }
    for name, logits in found.items():
        assert torch.allclose(logits, wanted, atol=1e-4), name
    theirs, others = (sum(p.numel() for p in n.parameters()) for n in (networks.timm, networks.transformers))
    assert theirs == others
    assert Logits(networks.transformers)(images).shape == wanted.shape


@torch.inference_mode()
def test_what_is_compiled_computes_the_same():
    network, rows = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)), torch.randn(4, 16)
    if runtimes.compiler() is None:
        with pytest.raises(UnavailableError, match="no compiler"):
            runtimes.compiled(network, rows)
    else:
        answer = runtimes.compiled(network, rows)()
        assert isinstance(answer, torch.Tensor)
        assert torch.allclose(answer, network(rows), atol=1e-5)


def test_what_is_not_there_is_named(networks: Networks, monkeypatch: pytest.MonkeyPatch):
    images = torch.randn(1, 3, 64, 64)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnavailableError, match="no compiler"):
        runtimes.compiled(networks.timm, images)
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match="onnxruntime is not installed"):
        runtimes.onnxruntime(networks.plain, images)
    with pytest.raises(UnavailableError, match="openvino is not installed"):
        runtimes.openvino(networks.timm, images)


def test_the_graph_refuses_what_it_is_not_written_for(networks: Networks):
    other = replace(networks.plain, settings=replace(networks.plain.settings, activation="gelu_tanh"))
    with pytest.raises(ValueError, match="written for GELU and a head on the class token; got gelu_tanh, class and 10"):
        vit_graph(other, 1)


def test_what_the_command_line_says():
    assert choose() == Settings()
    assert [(cell.size, cell.batch) for cell in choose(precisions="float32").cells] == [
        ("S", 1),
        ("S", 16),
        ("Ti", 16),
        ("B", 16),
    ]
    assert choose("Ti,B", batches="2,4").cells == grid(["Ti", "B"], [2, 4], ["float32", "bfloat16"])
    chosen = choose(budgets="1,.5", rounds=4, quick=True, profile=True)
    assert (chosen.budgets, chosen.rounds) == ((1.0, 0.5), 4)
    assert chosen.operators > 0
    assert {cell.size for cell in chosen.cells} == {"nano"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "XL"], "sizes must be among nano, Ti, S, B; got 'XL'."),
        (["--batches", "0"], "batches must be whole numbers from 1 on; got '0'."),
        (["--precisions", "int3"], "precisions must be among float32, bfloat16; got 'int3'."),
        (["--budgets", "1,2"], "budgets must lie in (0, 1]; got 1, 2."),
        (["--budgets", "half"], "budgets must be numbers parted by commas"),
        (["--rounds", "0"], "rounds must be at least 1; got 0."),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": ()}, "at least one cell and one budget; got 0 and 3"),
        ({"ways": ("compiled",)}, "ways must be eager, or eager and compiled; got compiled"),
        ({"cells": (Cell(size="S", batch=1, precision="float32", side=100),)}, "multiples of the patch, 16; got 100"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
    with pytest.raises(ValueError, match="batches must be whole numbers from 1 on; got 0"):
        Cell(size="S", batch=0, precision="float32")
