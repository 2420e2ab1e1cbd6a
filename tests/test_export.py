"""Programs for other runtimes say what the network says."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from test_cli import done, refused
from tiny_vit import DENSE, NARROWED, OWN, PUBLISHED, SKIPPING, tiny

import nestor
from nestor.layers.nested import Nest
from nestor.models.vit import ViT
from nestor.programs import onnx as graphs
from nestor.programs import write as writing
from nestor.programs.fixed import Fixed, Interface
from nestor.programs.openvino import Program
from nestor.programs.parity import check, clearness, pictures
from nestor.serving.network import promised
from nestor.serving.open import open_served
from nestor.surgery.quantize import measured, portable

TWO = Nest(widths=(6, 24), hidden=(12, 48), heads=(4, 4), own=True)
# Together these hold every head, every activation that tells exporters apart, and every kind of expert and router.
CASES: dict[str, tuple[Nest, float, dict[str, Any]]] = {
    "dense": (DENSE, 1.0, {"classes": 3, "head": "class", "antialias": True}),
    "two widths": (TWO, 0.5, {"classes": 3, "head": "mean_then_norm", "scores": ("loss",), "mean": (0.1, 0.2, 0.3)}),
    "four widths": (NARROWED, 0.5, {"classes": 3, "head": "class_mean", "activation": "swiglu", "depth": 2}),
    "published": (PUBLISHED, 0.6, {"classes": 3, "head": "mean", "prefix": 0, "activation": "gelu_tanh"}),
    "own weights": (OWN, 0.6, {"classes": 3, "head": "class_distill", "prefix": 3, "activation": "quick_gelu"}),
    "skipping": (SKIPPING, 0.5, {"classes": 3, "head": "attention", "embed_norm": True}),
    "headless": (NARROWED, 0.4, {}),
    "merging": (replace(TWO, merge=0.6), 0.5, {"classes": 3, "head": "class_mean", "depth": 4}),
    "full budget": (SKIPPING, 1.0, {"classes": 3, "head": "mean_then_norm"}),
}
LARGER = 20
"""Pixels: another size than that of the stored positions."""


def network(case: str) -> ViT:
    nest, _, changes = CASES[case]
    return tiny(nest, **{"depth": 1} | changes)


def everything(model: ViT) -> tuple[str, ...]:
    has = {"logits": model.head is not None, "class_token": model.settings.prefix > 0, "tokens": True}
    return tuple(name for name, there in has.items() if there)


def told(model: ViT, images: torch.Tensor, budget: float) -> dict[str, torch.Tensor]:
    """What a network says, under the names of a program's outputs."""
    with torch.no_grad():
        output = model(images, budget=budget)
        said = {"logits": output.logits, "class_token": output.tokens[:, 0], "tokens": output.tokens}
    return {name: said[name] for name in everything(model)}


def opened(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, images: torch.Tensor) -> dict[str, torch.Tensor]:
    given = session.run(None, {"images": images.numpy()})
    return {out.name: torch.from_numpy(value) for out, value in zip(session.get_outputs(), given, strict=True)}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, wanted in ours.items():
        assert theirs[name].shape == wanted.shape, name
        assert (theirs[name] - wanted).abs().max() <= 1e-4 * wanted.abs().max(), name


def shown(model: ViT, budget: float, size: int, count: int, seed: int = 1) -> torch.Tensor:
    """Pictures whose patches the router tells apart clearly, other ones than the exporter's own."""
    images = torch.randn(40, 3, size, size, generator=torch.Generator().manual_seed(seed))
    counts = model.plan((size // 4) ** 2, budget)
    with torch.no_grad():
        return images[clearness(model, images, counts).argsort(descending=True)[:count]]


@pytest.mark.parametrize("case", CASES)
def test_onnx_says_what_the_network_says_for_any_number_of_pictures(tmp_path: Path, case: str):
    model, budget = network(case), CASES[case][1]
    (file,) = nestor.export(
        model, tmp_path / "a.onnx", budgets=[budget], size=LARGER, outputs=everything(model), inputs="normalised"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    onnx.checker.check_model(str(file), full_check=True)
    session = opened(file)
    for batch in (1, 2, 7):
        images = shown(model, budget, LARGER, batch)
        same(told(model, images, budget), run(session, images))


@pytest.mark.parametrize("case", ["dense", "four widths", "skipping", "headless"])
def test_programs_of_torch_say_what_the_network_says(tmp_path: Path, case: str):
    model, budget = network(case), CASES[case][1]
    (file,) = nestor.export(
        model, tmp_path / "a.pt2", budgets=[budget], size=LARGER, format="torch", outputs=everything(model)
    )
    program = torch.export.load(file).module()
    for batch in (1, 2, 7):
        images = shown(model, budget, LARGER, batch)
        same(told(model, images, budget), dict(zip(everything(model), program(images), strict=True)))


@pytest.mark.parametrize("case", ["two widths", "published", "skipping", "merging", "full budget"])
def test_openvino_says_what_the_network_says(tmp_path: Path, case: str):
    model, budget = network(case), CASES[case][1]
    names = (*everything(model), "experts")
    file, weights = nestor.export(
        model, tmp_path / "a.xml", budgets=[budget], size=LARGER, format="openvino", outputs=names
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [weights.name, file.name]
    program = Program(file)
    assert program.names == names
    assert program.facts["budget"] == repr(budget)
    for batch in (1, 2, 7, 1):
        images = shown(model, budget, LARGER, batch)
        found = dict(zip(names, program(images), strict=True))
        with torch.no_grad():
            routings = model(images, budget=budget).routings
        taken = found.pop("experts")
        last = model.settings.nest.experts - 1
        assert torch.equal(taken, routings[0].index[..., 0].int() if routings else torch.full_like(taken, last))
        same(told(model, images, budget), found)
    with pytest.raises(ValueError, match=r"takes pictures \(B, \[3, 20, 20\]\); got \(1, 3, 16, 16\)"):
        program(torch.zeros(1, 3, 16, 16))


def test_openvino_in_bfloat16_is_near(tmp_path: Path):
    model = network("two widths")
    file, _ = nestor.export(model, tmp_path / "a.xml", budgets=[0.5], format="openvino")
    images = shown(model, 0.5, 16, 4)
    exact, near = (Program(file, precision=precision)(images)[0] for precision in ("float32", "bfloat16"))
    assert torch.cosine_similarity(exact, near, dim=-1).min() > 0.999
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16; got 'int4'"):
        Program(file, precision="int4")
    (tmp_path / "b.xml").write_text("<net/>")
    with pytest.raises(ValueError, match="no program that OpenVINO can read"):
        Program(tmp_path / "b.xml")


DROPPED = """
import gc, signal, sys, threading
import torch
from nestor.programs.openvino import Program

programs = [Program(sys.argv[1]), Program(sys.argv[1])]
for program in programs:
    program(torch.zeros(1, 3, 16, 16))
del program, programs[0]
thread = threading.Thread(target=lambda: (programs.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("alive"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_signal_after_programs_were_dropped(tmp_path: Path):
    file, _ = nestor.export(network("two widths"), tmp_path / "a.xml", budgets=[0.5], format="openvino")
    # With a stack of its own for signals, as pytest and servers have one.
    command = [sys.executable, "-X", "faulthandler", "-c", DROPPED, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_folder_of_programs_is_served_as_its_network_is(tmp_path: Path):
    model = network("two widths")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    nestor.save(model, tmp_path / "net")
    how: dict[str, Any] = {"format": "openvino", "outputs": ("logits", "experts")}
    nestor.export(model, tmp_path / "cpu" / "v.xml", budgets=[0.5, 1], **how)
    served, network_ = open_served(tmp_path / "cpu"), open_served(tmp_path / "net", budgets=(0.5, 1.0))
    assert promised(served) == promised(network_)
    for budget in served.budgets:
        images = shown(model, budget, 16, 3)
        ours, theirs = served.run(images, budget), network_.run(images, budget)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
        if theirs.experts is not None:
            assert ours.experts is not None
            assert torch.equal(ours.experts, theirs.experts)
    assert open_served(tmp_path / "cpu", budgets=(0.5,)).budgets == (0.5,)
    refusals: tuple[tuple[str, dict[str, Any]], ...] = (
        ("has programs for the budgets 0.5, 1; got 0.7", {"budgets": (0.7,)}),
        ("got 'int8' and size None", {"precision": "int8"}),
        ("got 'float32' and size 32", {"size": 32}),
    )
    for match, given in refusals:
        with pytest.raises(ValueError, match=match):
            open_served(tmp_path / "cpu", **given)
    nestor.export(network("four widths"), tmp_path / "cpu" / "other.xml", budgets=[0.6], **how)
    with pytest.raises(ValueError, match="must hold programs of one network"):
        open_served(tmp_path / "cpu")
    nestor.export(model, tmp_path / "twice" / "a.xml", budgets=[0.5], **how)
    nestor.export(model, tmp_path / "twice" / "b.xml", budgets=[0.5], **how)
    with pytest.raises(ValueError, match=r"each with a budget of its own; got 2 files and the budgets \[0\.5\]"):
        open_served(tmp_path / "twice")
    nestor.export(model, tmp_path / "mute" / "a.xml", format="openvino", outputs=("tokens",))
    with pytest.raises(ValueError, match="must hold programs that give logits"):
        open_served(tmp_path / "mute")


@pytest.mark.parametrize("case", ["dense", "two widths", "skipping", "merging"])
def test_openvino_in_eight_bits_is_as_near_as_the_rounded_network(tmp_path: Path, case: str):
    model, budget = network(case), CASES[case][1]
    readings = measured(model, shown(model, budget, 16, 8))
    how: dict[str, Any] = {"format": "openvino", "budgets": [budget]}
    file, weights = nestor.export(model, tmp_path / "a.xml", readings=readings, **how)
    _, whole = nestor.export(model, tmp_path / "b.xml", **how)
    text = file.read_text()
    # Of every block four products for each expert that takes part; what stays are embedding, router and head.
    assert text.count('element_type="i8"') > 4 * model.settings.depth - 1
    assert weights.stat().st_size < whole.stat().st_size
    program, images = Program(file), shown(model, budget, 16, 4)
    assert program.facts["products"] == "int8"
    exact = told(model, images, budget)["logits"]
    with torch.no_grad():
        rounded = portable(model, readings)(images, budget=budget).logits
    lost = (rounded - exact).norm()
    assert 0 < lost < 0.2 * exact.norm()
    for precision in ("float32", "bfloat16"):
        found = Program(file, precision=precision)(images)[0]
        assert (found - exact).norm() < 2 * lost + (0.03 * exact.norm() if precision == "bfloat16" else 0)
    with pytest.raises(ValueError, match="eight bits are for programs in the format openvino; got onnx"):
        nestor.export(model, tmp_path / "c.onnx", readings=readings)


def test_a_program_far_from_its_rounded_network_is_refused():
    model = network("two widths")
    readings = measured(model, shown(model, 0.5, 16, 8))
    interface = Interface(size=16)
    program, exact = Fixed(model, 0.5, interface, partial(portable, readings=readings)), Fixed(model, 0.5, interface)
    check(program, program, "a.xml", exact)
    check(program, exact, "a.xml", exact)
    with pytest.raises(ValueError, match=r"a\.xml must give what the network gives"):
        check(program, lambda images: [1.5 * given for given in exact(images)], "a.xml", exact)


def test_budgets_share_their_weights(tmp_path: Path):
    model = tiny(Nest(widths=(32, 128), hidden=(128, 512), heads=(2, 2), own=True), classes=2, head="class")
    alone = nestor.export(model, tmp_path / "one.onnx", budgets=[0.5])[0].stat().st_size
    first, second, third, weights = nestor.export(model, tmp_path / "v.onnx", budgets=[0.4, 0.5, 1])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("one.onnx", "v-0.4.onnx", "v-0.5.onnx", "v-1.onnx", "v.onnx.data")
    ]
    assert weights.stat().st_size < 1.1 * alone
    assert max(path.stat().st_size for path in (first, second, third)) < 0.2 * alone
    for budget, file in ((0.4, first), (0.5, second), (1.0, third)):
        images = shown(model, budget, 16, 3)
        assert list(run(opened(file), images)) == ["logits"]
        wanted = told(model, images, budget)["logits"]
        same({"logits": wanted}, run(opened(file), images))
        stored = list(onnx.load(str(file), load_external_data=False).graph.initializer)
        assert all(
            {entry.value for entry in tensor.external_data if entry.key == "location"} <= {"v.onnx.data"}
            for tensor in stored
        )


def test_a_weight_is_cut_by_the_runtime_when_it_loads(tmp_path: Path):
    model = tiny(Nest(widths=(32, 128), hidden=(128, 512), heads=(2, 2)))
    (file,) = nestor.export(model, tmp_path / "a.onnx", budgets=[0.5])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(str(tmp_path / "loaded.onnx")).graph
    stored = {tensor.name for tensor in loaded.initializer}
    assert not [node.op_type for node in loaded.node if set(filter(None, node.input)) <= stored]


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_pixels_are_normalised_by_the_program(tmp_path: Path, format: str):
    model, budget = network("two widths"), 0.5
    (file,) = nestor.export(
        model, tmp_path / f"a{writing.FORMATS[format]}", budgets=[budget], format=format, inputs="pixels"
    )
    program = Fixed(model, budget, Interface(size=16, inputs="pixels"))
    pixels = pictures(program, 2)
    assert pixels.dtype == torch.uint8
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.settings.mean, model.settings.std))
    wanted = told(model, (pixels / 255 - mean) / std, budget)["logits"]
    if format == "onnx":
        same({"logits": wanted}, run(opened(file), pixels))
    else:
        same({"logits": wanted}, {"logits": torch.export.load(file).module()(pixels)[0]})


def test_files_say_what_they_are(tmp_path: Path):
    model = tiny(NARROWED, classes=2, labels=("cat", "dög"), mean=(0.1, 0.2, 0.3))
    (file,) = nestor.export(model, tmp_path / "a.onnx", budgets=[0.5])
    (program,) = nestor.export(model, tmp_path / "a.pt2", budgets=[0.5], format="torch")
    facts = opened(file).get_modelmeta().custom_metadata_map
    extra: dict[str, Any] = {"nestor.json": ""}
    torch.export.load(program, extra_files=extra)
    assert facts == json.loads(extra["nestor.json"])
    assert facts["nestor.version"] == nestor.__version__
    assert float(facts["nestor.budget"]) == 0.5
    assert json.loads(facts["nestor.labels"]) == ["cat", "dög"]
    assert json.loads(facts["nestor.mean"]) == [0.1, 0.2, 0.3]
    assert json.loads(facts["nestor.std"]) == list(model.settings.std)
    assert json.loads(facts["nestor.counts"]) == list(model.plan(16, 0.5))
    assert int(facts["nestor.macs"]) == model.macs(model.plan(16, 0.5))


def test_without_a_wish_a_program_gives_the_first_that_it_has():
    def names(model: ViT) -> tuple[str, ...]:
        return Fixed(model, 1.0, Interface(size=16)).names

    assert names(tiny(classes=2)) == ("logits",)
    assert names(tiny()) == ("class_token",)
    assert names(tiny(prefix=0)) == ("tokens",)


def test_a_fixed_network_leaves_the_network_as_it_was():
    model = tiny(NARROWED, classes=2).to(torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = Fixed(model, 0.5, Interface(size=LARGER))
    assert program(torch.randn(2, 3, LARGER, LARGER))[0].dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert model.training
    assert model.settings.grid == (4, 4)
    single = tiny(NARROWED)
    assert Fixed(single, 0.5, Interface(size=16)).model.embed.weight.data_ptr() == single.embed.weight.data_ptr()


def test_a_program_that_says_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tiny(NARROWED, classes=2)

    def off(file: Path) -> Any:
        correct = graphs.run_onnx(file)
        return lambda images: [given * 1.001 for given in correct(images)]

    monkeypatch.setitem(writing._RUN, "onnx", off)
    message = r"a\.onnx must give what the network gives, to 0\.0001 .*; its logits for a batch of 1 differ by 0\.001"
    (tmp_path / "a.onnx").write_text("earlier")
    with pytest.raises(ValueError, match=message):
        nestor.export(model, tmp_path / "a.onnx", budgets=[0.5], overwrite=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def test_the_check_sees_what_is_wrong():
    program = Fixed(tiny(NARROWED, classes=2), 0.5, Interface(size=16))
    with torch.no_grad():
        assert check(program, program, "a") == 0
        assert 1e-5 < check(program, lambda images: [program(images)[0] * (1 + 5e-5)], "a") < 1e-4
        for wrong in (torch.nan, torch.inf, 0.0):
            with pytest.raises(ValueError, match="a must give what the network gives"):
                check(program, lambda images, wrong=wrong: [program(images)[0] * wrong], "a")
        with pytest.raises(ValueError, match="batch of 3 differ by inf"):
            check(program, lambda images: [program(images)[0][:1]], "a")


def test_clearness_is_the_gap_at_an_experts_border():
    model = tiny(NARROWED)
    images, counts = torch.randn(5, 3, 16, 16), (4, 5, 4, 3)
    with torch.no_grad():
        found = clearness(model, images, counts)
        routing = model.route(model.embed(images), counts, (4, 4))
    assert routing is not None
    for item in range(5):
        gaps = []
        for expert in (1, 2, 3):
            scores = routing.scores[item, :, expert]
            left = [s for s, j in zip(scores, routing.index[item, :, 0], strict=True) if j < expert]
            taken = [s for s, j in zip(scores, routing.index[item, :, 0], strict=True) if j == expert]
            gaps.append(min(taken) - max(left))
        assert found[item] == min(gaps)
    assert clearness(model, images, (0, 0, 0, 16)).tolist() == [torch.inf] * 5
    assert clearness(tiny(), images, (16,)).tolist() == [torch.inf] * 5


def test_what_does_not_fit_is_refused(tmp_path: Path):
    model = tiny(NARROWED)
    least = model.least_budget(16)

    def refusal(match: str, model: ViT = model, out: str = "a.onnx", **changes: Any) -> None:
        with pytest.raises(ValueError, match=match):
            nestor.export(model, tmp_path / out, **changes)

    refusal(rf"budget must lie in \[{least:.3g}, 1\]", budgets=[0.01])
    refusal("size must be a multiple of the patch, 4; got 18 x 18", size=18)
    refusal("format must be one of onnx, torch, openvino; got 'tflite'", format="tflite")
    refusal(r"must end with \.pt2; got .*a\.onnx", format="torch")
    refusal("budgets must name at least one", budgets=[])
    refusal(r"budgets must differ, .*; got 0\.5, 0\.5", budgets=[0.5, 0.5])
    refusal("inputs must be normalised or pixels; got 'raw'", inputs="raw")
    refusal("outputs must be among .*; got none", outputs=[])
    refusal("outputs must be among .*; got tokens, tokens", outputs=["tokens", "tokens"])
    refusal("the output logits needs a network with a head", outputs=["logits"])
    refusal("the output class_token needs a network with a class token", tiny(prefix=0), outputs=["class_token"])
    refusal("a router that draws at random cannot be exported", tiny(NARROWED, scores=("uniform",)))
    assert not list(tmp_path.iterdir())
    for name in ("v-0.5.onnx", "v.onnx.data", "a.onnx"):
        (tmp_path / name).write_text("here")
        out = name if name == "a.onnx" else "v.onnx"
        refusal(rf"{name} exists already", out=out, budgets=[0.5] if name == "a.onnx" else [0.5, 1])
        (tmp_path / name).unlink()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ImportError, match=r"need onnxscript\. Install .*pip install 'nestor\[export\]'"):
        nestor.export(tiny(), tmp_path / "a.onnx")
    assert nestor.export(tiny(), tmp_path / "a.pt2", format="torch") == (tmp_path / "a.pt2",)


def test_large_networks_keep_their_weights_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "_MOST", 1000)
    model = tiny(NARROWED)
    file, weights = nestor.export(model, tmp_path / "a.onnx", budgets=[0.5])
    assert weights == tmp_path / "a.onnx.data"
    images = shown(model, 0.5, 16, 2)
    same({"class_token": told(model, images, 0.5)["class_token"]}, run(opened(file), images))


def test_the_command(tmp_path: Path):
    nestor.save(tiny(NARROWED, classes=2), tmp_path / "elastic")
    said = done("export", tmp_path / "elastic", "--budget", 0.5, "--budget", 1, "--out", tmp_path / "new" / "v.onnx")
    assert [line.split(":")[0] for line in said.stdout.splitlines()] == [
        str(tmp_path / "new" / name) for name in ("v-0.5.onnx", "v-1.onnx", "v.onnx.data")
    ]
    export = ("export", tmp_path / "elastic", "--out", tmp_path / "v.pt2", "--format", "torch")
    done(*export, "--outputs", "tokens,logits", "--inputs", "pixels", "--size", LARGER)
    pixels = torch.zeros(1, 3, LARGER, LARGER, dtype=torch.uint8)
    given = torch.export.load(tmp_path / "v.pt2").module()(pixels)
    assert [tuple(part.shape) for part in given] == [(1, 26, 24), (1, 2)]
    assert "v.pt2 exists already" in refused(*export)
    done(*export, "--overwrite")
    assert "must end with .onnx" in refused("export", tmp_path / "elastic", "--out", tmp_path / "v.bin")
