import importlib
import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from benchmarks import mixtures, rivals, runtimes, speed
from benchmarks.__main__ import app, choose
from benchmarks.floor import Matmul, Rates
from benchmarks.networks import Logits, Networks, build
from benchmarks.onnx_graph import vit_graph
from benchmarks.plot import draw
from benchmarks.record import Candidate, Report, judge
from benchmarks.runtimes import UnavailableError
from benchmarks.settings import SUBJECTS, Cell, Layer, Settings, Vision, grid
from benchmarks.show import show
from benchmarks.speed import keep, measure, timed
from nestor.measure.clock import Timing

NANO = SUBJECTS["ViT-nano"]
MIXTURE = SUBJECTS["mixture-nano"]
STEP = Cell(subject="ViT-nano", precision="bfloat16", work="step")
TINY = Settings(
    cells=(*grid(["ViT-nano"], [2]), *grid(["mixture-nano"], precisions=["float32"]), STEP),
    budgets=(1.0, 0.8, 0.1),
    elastic=("nested", "published", "merged"),
    compiled=(),
    rounds=1,
    cube=16,
    memory=1 << 12,
    operators=3,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure(TINY, tmp_path_factory.mktemp("runs"), lambda line: None)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def networks() -> Networks:
    assert isinstance(NANO, Vision)
    return build(replace(NANO, scaled=True), TINY.elastic)


def test_networks_in_eight_bits_race_against_one_another(tmp_path: Path, one_thread: None):
    cell = Cell(subject="ViT-nano", precision="int8", batch=2)
    report = measure(replace(TINY, cells=(cell,)), tmp_path, lambda line: None)
    rows = {(row.name, row.budget) for row in report.rows}
    assert {("ours", 1.0), ("onnxruntime", 1.0), ("nested", 0.8)} <= rows
    assert not [name for name, _ in rows if name in ("merged", "timm", "transformers") or "openvino" in name]
    with pytest.raises(ValueError, match="vision transformers predict in eight bits; got mixture-384"):
        Cell(subject="mixture-384", precision="int8")
    with pytest.raises(ValueError, match="got ViT-nano, forward and backward"):
        replace(STEP, precision="int8")


def test_where_eight_bits_overflow_they_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    said: list[object] = []
    with pytest.raises(ValueError, match="at least one cell"):
        measure(replace(TINY, cells=(Cell(subject="ViT-nano", precision="int8"),)), tmp_path, said.append)
    assert "left out" in str(said[0])


def test_every_cell_has_its_rows(report: Report):
    single, half, layer, learning, step = report.cells
    assert report.cells == TINY.cells
    nested = {(name, budget) for name in ("nested", "published") for budget in TINY.budgets}
    merged = {("merged", budget) for budget in TINY.budgets[1:]}
    runtimes_too = {(name, 1.0) for name in ("onnxruntime", "openvino", "ours openvino")}
    runtimes_too |= {(f"{name} openvino", budget) for name, budget in nested | merged if budget > 0.1}
    dense = {(name, 1.0) for name in ("ours", "timm", "transformers")}
    layers = {
        (name, 1.0) for name in ("dense", "ours", "transformers eager", "transformers grouped_mm", "mixture-of-experts")
    }
    wanted = dict.fromkeys((single, half), dense | nested | merged | runtimes_too)
    wanted |= {step: dense | nested | merged, layer: layers, learning: layers}
    for cell, names in wanted.items():
        rows = {(row.name, row.budget) for row in report.rows if row.cell == cell}
        missing = {(one.name, one.budget) for one in report.absent if one.cell == cell.title}
        assert rows | missing == names
        assert not rows & missing
        if cell in (single, half, step):
            assert {("nested", 0.1), ("published", 0.1), ("merged", 0.1)} <= missing
            assert dense | {("nested", 1.0), ("nested", 0.8), ("merged", 0.8)} <= rows
        else:
            assert {("dense", 1.0), ("ours", 1.0), ("transformers eager", 1.0)} <= rows


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
            assert row.kind not in ("mixture", "rival") or 0.9 < row.reduction < 1


def test_reasons_are_given_for_what_is_missing(report: Report):
    reasons = {(one.cell, one.name): one.reason for one in report.absent}
    half = TINY.cells[1].title
    assert reasons[half, "onnxruntime"] == "no bfloat16 on CPUs"
    assert reasons[half, "nested"].startswith("budget must lie in")


def test_operators_add_up_to_named_ones_and_the_rest(report: Report):
    for cell in TINY.cells[:2]:
        mine = [one for one in report.operators if one.cell == cell.title]
        networks = {one.network for one in mine}
        assert networks == {"ours", "timm", "transformers", "nested 1", "nested 0.8"}
        assert len({one.operator for one in mine} - {"others"}) == TINY.operators
        assert {one.network for one in mine if one.operator == "others"} == networks
        assert all(one.ms > 0 and one.calls >= 0 for one in mine)


def test_a_run_is_kept_as_numbers_table_and_figure(report: Report, tmp_path: Path):
    numbers, table, figure = keep(report, tmp_path / "history")
    assert numbers.parent == tmp_path / "history" / report.place
    assert numbers.name == f"{report.date.replace(':', '')}-{report.sources[:8]}.json"
    data = json.loads(numbers.read_text())
    assert data["machine"] == report.machine
    assert set(data["versions"]) >= {"nestor", "torch", "timm", "transformers", "onnxruntime", "openvino", "compiler"}
    again = Report.from_json(numbers.read_text())
    assert again.cells == report.cells
    assert again.rows[0].speed_up == pytest.approx(report.rows[0].speed_up, rel=1e-5)
    assert again.absent == report.absent
    assert again.to_json() == numbers.read_text()
    assert "GFLOP/s" in table.read_text()
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="a report needs format 1"):
        Report.from_json("[]")


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = replace(TINY, cells=grid(["mixture-nano"], precisions=["float32"]))
    raced: list[str] = []

    def interrupting(calls, settings, what):
        raced.append(what)
        if len(raced) == 2:
            raise KeyboardInterrupt
        return timed(calls, settings, what)

    monkeypatch.setattr(speed, "timed", interrupting)
    with pytest.raises(KeyboardInterrupt):
        measure(settings, tmp_path, lambda line: None)
    (kept,) = tmp_path.glob("unfinished-*.json")
    first = Report.from_json(kept.read_text())
    assert first.cells == settings.cells[:1]
    said: list[str] = []
    report = measure(settings, tmp_path, said.append)
    assert "Going on after 1 of 2 races" in said[0]
    assert report.cells == settings.cells
    assert report.rows[: len(first.rows)] == first.rows
    assert report.rates == first.rates
    assert raced == [settings.cells[0].title, settings.cells[1].title, settings.cells[1].title]
    assert not kept.exists()


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
    cell = Cell(subject="ViT-nano", precision="float32")
    # 10^9 operations a second: 2 for each multiply-accumulate.
    rates = Rates(matmuls=(Matmul(precision="float32", rows=1, inputs=1, outputs=1, gflops=1.0),), memory=1.0)
    kinds = {"a": ("dense", 8, 20.0), "b": ("dense", 8, 10.0), "n": ("nested", 4, 4.0)}
    timings = {
        Candidate(name=name, kind=kind, budget=1.0, macs=macs * 10**6 // 4, weights=1): Timing(
            median_ms=ms, low_ms=ms, high_ms=ms, rounds=1
        )
        for name, (kind, macs, ms) in kinds.items()
    }
    rows = {row.name: row for row in judge(cell, timings, rates)}
    assert rows["n"].against == {"a": 5.0, "b": 2.5}
    assert (rows["n"].speed_up, rows["n"].reduction, rows["n"].efficiency) == (2.5, 2.0, 1.25)
    assert rows["n"].floor_ms == pytest.approx(2.0)
    assert rows["n"].over_floor == pytest.approx(2.0)
    assert (rows["a"].speed_up, rows["b"].speed_up) == (0.5, 1.0)
    nested = {candidate: timing for candidate, timing in timings.items() if candidate.kind == "nested"}
    with pytest.raises(ValueError, match="at least one dense candidate; ViT-nano, batch 1, float32 has none"):
        judge(cell, nested, rates)


def test_floors_by_hand():
    slow, fast = (Matmul(precision="float32", rows=1, inputs=1, outputs=1, gflops=gflops) for gflops in (10.0, 100.0))
    rates = Rates(matmuls=(slow, fast), memory=10.0)
    cell = Cell(subject="ViT-nano", batch=2, precision="float32")
    busy = Candidate(name="busy", kind="dense", budget=1.0, macs=10**9, weights=10)
    # 2 items, 2 operations a multiply-accumulate, 10^11 a second.
    assert rates.floor_ms(cell, busy) == pytest.approx(40.0)
    assert rates.floor_ms(replace(cell, work="step"), busy) == pytest.approx(120.0)
    # 4 bytes a weight, 10^10 a second.
    assert rates.floor_ms(cell, replace(busy, macs=1, weights=10**8)) == pytest.approx(40.0)


def test_impatience_leaves_five_rounds():
    calls: list[str] = []
    one = Candidate(name="a", kind="dense", budget=1.0, macs=1, weights=1)
    work = {candidate: lambda n=candidate.name: calls.append(n) for candidate in (one, replace(one, name="b"))}
    found = timed(work, replace(TINY, rounds=7, seconds=0.0), "nothing")
    assert calls == ["a", "b"] * 6
    assert {candidate.name: timing.rounds for candidate, timing in found.items()} == {"a": 5, "b": 5}
    assert timed(work, replace(TINY, rounds=7, seconds=60.0), "nothing")[one].rounds == 7
    assert timed(work, replace(TINY, rounds=2, seconds=0.0), "nothing")[one].rounds == 2


@torch.inference_mode()
def test_all_compute_the_same(networks: Networks):
    images = torch.randn(2, 3, 64, 64)
    wanted = networks.timm(images)
    assert wanted.abs().max() > 0.01
    found = {
        "ours": networks.dense(images).logits,
        **{name: Logits(network, 1.0)(images) for name, network in networks.elastic.items()},
        "onnxruntime": torch.tensor(runtimes.onnxruntime(networks.plain, images)()),
    }
    for name, logits in found.items():
        assert torch.allclose(logits, wanted, atol=1e-4), name
    theirs, others = (
        sum(p.numel() for name, p in n.named_parameters() if p.ndim > 1 and "head" not in name)
        for n in (networks.timm, networks.transformers.get_submodule("dinov2"))
    )
    # A mask token for pretraining is all that theirs lacks.
    assert others == theirs + 64
    assert Logits(networks.transformers)(images).shape == wanted.shape


@torch.inference_mode()
def test_mixture_layers_compute_the_same():
    assert isinstance(MIXTURE, Layer)
    layer = mixtures.ours(MIXTURE)
    tokens = torch.randn(1, MIXTURE.tokens, MIXTURE.width)
    wanted = layer(tokens)[0]
    for way in mixtures.WAYS:
        torch.testing.assert_close(mixtures.mixtral(MIXTURE, layer, way)(tokens), wanted, rtol=1e-4, atol=1e-5)
    dense = mixtures.Dense(MIXTURE)
    active = MIXTURE.chosen * layer.experts.costs[0]
    assert sum(parameter.numel() for parameter in dense.parameters()) == active
    assert dense(tokens).shape == wanted.shape


def test_what_is_compiled_was_called_before(monkeypatch: pytest.MonkeyPatch):
    network, rows = nn.Linear(16, 8), torch.randn(4, 16)
    seen: list[str] = []
    network.register_forward_hook(lambda *_: seen.append("as it is"))

    def compiling(given, **options):
        seen.append("compiling")
        assert given is network
        return lambda inputs: seen.append("compiled") or 2 * F.linear(inputs, network.weight)

    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(torch, "compile", compiling)
    call = runtimes.compiled(network, rows)
    assert seen == ["as it is", "compiling", "compiled"]
    assert torch.equal(torch.as_tensor(call()), 2 * F.linear(rows, network.weight))

    def failing(given, **options):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(torch, "compile", lambda given, **options: lambda inputs: failing(given))
    with pytest.raises(UnavailableError, match=r"fails: no such kernel$"):
        runtimes.compiled(network, rows)


def test_what_is_not_there_is_named(networks: Networks, monkeypatch: pytest.MonkeyPatch):
    images = torch.randn(1, 3, 64, 64)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnavailableError, match="no compiler"):
        runtimes.compiled(networks.timm, images)
    monkeypatch.setattr(mixtures, "find_spec", lambda name: None)
    assert isinstance(MIXTURE, Layer)
    with pytest.raises(UnavailableError, match="mixture-of-experts is not installed"):
        mixtures.packaged(MIXTURE)
    with pytest.raises(UnavailableError, match="fails: mat1 and mat2"):
        runtimes.predict(nn.Linear(3, 2), torch.ones(1, 5))
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
    usual = Settings()
    assert choose(usual) == usual
    assert choose(usual, subjects="ViT-Ti/16,ViT-B/16", batches="2,4").cells == grid(["ViT-Ti/16", "ViT-B/16"], [2, 4])
    single = choose(usual, precisions="float32").cells
    assert single == tuple(cell for cell in usual.cells if cell.precision == "float32")
    chosen = choose(Settings.quick(), budgets="1,.5", rounds=4, profile=True)
    assert (chosen.budgets, chosen.rounds) == ((1.0, 0.5), 4)
    assert chosen.operators > 0
    assert {cell.subject for cell in chosen.cells} == {"ViT-nano", "mixture-nano"}
    whole = {(cell.subject, cell.batch, cell.precision) for cell in Settings.whole().cells}
    assert {(f"ViT-{size}/16", batch, "bfloat16") for size in ("Ti", "S", "B") for batch in (1, 16)} <= whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subjects", "XL"], "subjects must be among ViT-nano, ViT-Ti/16"),
        (["--batches", "0"], "batches must be whole numbers from 1 on; got '0'."),
        (["--precisions", "int3"], "precisions must be among float32, bfloat16, int8; got 'int3'."),
        (["--budgets", "1,2"], "budgets must lie in (0, 1]; got 1, 2."),
        (["--budgets", "half"], "budgets must be numbers parted by commas"),
        (["--rounds", "0"], "rounds must be at least 1; got 0."),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least one cell and one budget; got 0 and 3"):
        replace(TINY, cells=())
    with pytest.raises(ValueError, match="batches must be whole numbers from 1 on; got 0"):
        Cell(subject="ViT-S/16", batch=0, precision="float32")
    with pytest.raises(ValueError, match="works must be among predict, step; got 'sleep'"):
        Cell(subject="ViT-S/16", precision="float32", work="sleep")


def test_rivals_are_found_where_make_keeps_them_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "kept_apart.py").write_text("VALUE = 3\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(rivals, "FOLDER", tmp_path)
    for _ in range(2):
        rivals.reach_rivals()
    assert importlib.import_module("kept_apart").VALUE == 3
    assert sys.path.count(str(tmp_path)) == 1
    assert "--target $(VENV)/rivals $(RIVALS)" in (Path(__file__).parent.parent / "Makefile").read_text()
