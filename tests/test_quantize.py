"""Networks in eight-bit numbers: every product against the same whole numbers in double precision, and the whole."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import NESTS, small

from nestor.measure.latency import latency_table
from nestor.models.readings import READINGS, load_readings, save_readings
from nestor.models.saved import load_model, save_model
from nestor.ops.int8 import Product, Reading, Steps, fitted
from nestor.ops.linear import ACTIVATIONS
from nestor.ops.portable import Portable
from nestor.serving.open import open_served
from nestor.surgery.quantize import measured, portable, quantize, quantized

DTYPES = (torch.float32, torch.bfloat16)


@given(st.floats(1e-3, 1e3), st.integers(0, 255), st.integers(0, 99))
def test_a_step_is_the_nearest_one(size: float, zero: int, seed: int):
    steps = Steps(size=size, zero=zero)
    values = size * torch.empty(40).uniform_(-300, 300, generator=torch.Generator().manual_seed(seed))
    found = steps.value(steps.of(values, torch.ones(())))
    inside = values.clamp(-size * zero, size * (255 - zero))
    assert (found - inside).abs().max() <= 0.5001 * size
    assert steps.value(torch.tensor([zero])) == 0


def test_steps_fit_what_most_values_need():
    few = torch.cat([torch.linspace(-1, 1, 200_000), torch.tensor([40.0])])
    found, wide = fitted(few), Steps(size=41 / 255, zero=6)
    wrong = [(steps.value(steps.of(few, torch.ones(()))) - few).square().mean() for steps in (found, wide)]
    assert wrong[0] < 0.9 * wrong[1]
    assert fitted(torch.zeros(5)).value(torch.tensor(0)).isfinite()
    even = fitted(torch.linspace(-1, 3, 1000))
    assert even.size == pytest.approx(4 / 255, rel=0.06)


def rounded(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, steps: Steps) -> torch.Tensor:
    """The product of the same whole numbers, in double precision."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    whole = (weight / scale).round()
    return steps.value(rows).double() @ (whole * scale).double().T + bias.double()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("lead", "width", "units"), [((3, 5), 7, 6), ((1, 1), 64, 32), ((2, 33), 48, 10)])
def test_products_and_what_follows_them(activation: str, lead: tuple[int, ...], width: int, units: int):
    rows, weight, bias = torch.randn(*lead, width), torch.randn(units, width), torch.randn(units)
    onto = torch.randn(*lead, units)
    steps, answer = fitted(rows), Steps(size=0.05, zero=20)
    product, taken = Product(weight, bias, Reading(steps=steps)), steps.of(rows, torch.ones(()))
    plain = rounded(taken, weight, bias, steps)
    for dtype in DTYPES:
        rtol, atol = (1e-5, 1e-4) if dtype == torch.float32 else (1e-2, 1e-2)
        torch.testing.assert_close(product(taken, dtype), plain.to(dtype), rtol=rtol, atol=atol)
        torch.testing.assert_close(
            product.added(taken, onto.to(dtype)), (onto.to(dtype) + plain).to(dtype), rtol=rtol, atol=atol
        )
    active = ACTIVATIONS[activation](plain)
    torch.testing.assert_close(product.activated(taken, activation), active.float(), rtol=1e-4, atol=1e-4)
    stepped = product.activated(taken, activation, answer)
    assert stepped.dtype == torch.uint8
    # Between two steps either may be taken.
    expected = answer.of(active.float(), torch.ones(()))
    assert (stepped.int() - expected.int()).abs().max() <= 1
    assert (stepped != expected).float().mean() < 0.1


@pytest.mark.parametrize("name", NESTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_answers_nearly_as_the_network_does_at_every_budget(name: str, dtype: torch.dtype):
    model = small(name).to(dtype)
    images = torch.randn(8, 3, 16, 16).to(dtype)
    before = copy.deepcopy(model.state_dict())
    made = quantize(model, images)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    least = model.least_budget(16) if model.settings.nest.experts > 1 else 1.0
    with torch.inference_mode():
        for budget in sorted({1.0, (1 + least) / 2, least}):
            full, found = (network(images, budget=budget) for network in (model, made))
            assert found.logits.dtype == dtype
            assert torch.cosine_similarity(found.tokens.double(), full.tokens.double(), dim=-1).mean() > 0.995
            assert made.macs(made.plan(16, budget)) == model.macs(model.plan(16, budget))


def test_an_answer_does_not_depend_on_its_batch():
    model, images = small("own"), torch.randn(6, 3, 16, 16)
    made = quantize(model, images)
    # Steps found in the batch would be a hundred times as wide beside this one.
    loud = torch.cat([images, 100 * torch.randn(1, 3, 16, 16)])
    with torch.inference_mode():
        together = made(loud, budget=0.6).logits[:-1]
        alone = torch.cat([made(image, budget=0.6).logits for image in images.split(1)])
    # Where the last bit differs with the size of the batch, the next step may be taken.
    torch.testing.assert_close(together, alone, rtol=0.02, atol=0.02)


def test_it_is_not_saved_and_runs_on_a_cpu(tmp_path: Path):
    model, images = small("own"), torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match="for running and not for saving"):
        save_model(quantize(model, images), tmp_path / "net")
    assert not (tmp_path / "net").exists()
    with pytest.raises(ValueError, match="run on the CPU; this network is on meta"):
        quantize(model.to("meta"), images)


def test_where_sums_would_overflow_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(ValueError, match="need a processor with VNNI or AMX"):
        quantize(small("own"), torch.randn(2, 3, 16, 16))


def test_it_can_be_copied_timed_and_told_another_precision():
    model, images = small("own"), torch.randn(4, 3, 16, 16)
    made = quantize(model, images)
    again = copy.deepcopy(made)
    with torch.inference_mode():
        assert torch.equal(made(images, budget=0.6).logits, again(images, budget=0.6).logits)
        half = again.bfloat16()(images.bfloat16(), budget=0.6).logits
        torch.testing.assert_close(half.float(), made(images, budget=0.6).logits, rtol=0.1, atol=0.1)
    table = latency_table(made, size=16, points=2, rounds=1)
    assert len(table.ms) == 2


def test_readings_are_kept_beside_the_weights_they_are_of(tmp_path: Path):
    model, images = small("own skip"), torch.randn(4, 3, 16, 16)
    with pytest.raises(FileNotFoundError, match=r"has no int8\.safetensors.* nestor quantize"):
        load_readings(tmp_path)
    save_model(model, tmp_path)
    found = measured(model, images)
    save_readings(found, tmp_path)
    made = quantized(load_model(tmp_path), load_readings(tmp_path))
    for one, other in zip(found, load_readings(tmp_path), strict=True):
        assert one.keys() == other.keys()
        for site, experts in one.items():
            assert {j: reading.steps for j, reading in experts.items()} == {
                j: reading.steps for j, reading in other[site].items()
            }
    with torch.inference_mode():
        kept, direct = (network(images, budget=0.6).logits for network in (made, quantized(model, found)))
    torch.testing.assert_close(kept, direct, rtol=0.02, atol=0.02)
    other = small("own", seed=1)
    with pytest.raises(ValueError, match=r"readings must be of experts \[0, 1, 2\]; got \[1, 2\]"):
        quantized(other, found)
    with pytest.raises(ValueError, match="a network with 2 blocks; got 1"):
        quantized(other, load_readings(tmp_path)[:1])
    save_model(other, tmp_path)
    with pytest.raises(ValueError, match="made for other weights"):
        load_readings(tmp_path)
    (tmp_path / READINGS).write_bytes(b"cut")
    with pytest.raises(ValueError, match="cut off or no safetensors"):
        load_readings(tmp_path)


def test_what_is_ready_for_eight_bits_is_served_in_them(tmp_path: Path):
    model, images = small("own", labels=("cat", "dog", "newt")), torch.randn(4, 3, 16, 16)
    save_model(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="nestor quantize"):
        open_served(tmp_path, precision="int8")
    save_readings(measured(model, images), tmp_path)
    served = open_served(tmp_path, precision="int8")
    with torch.inference_mode():
        wanted = quantize(model, images)(images, budget=served.budgets[0]).logits
    torch.testing.assert_close(served.run(images, served.budgets[0]).logits, wanted, rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="float32, bfloat16 or int8; got 'int4'"):
        open_served(tmp_path, precision="int4")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_portable_products_are_those_of_the_same_whole_numbers(activation: str):
    rows, weight, bias, onto = torch.randn(2, 5, 12), torch.randn(6, 12), torch.randn(6), torch.randn(2, 5, 6)
    scale, reaches = torch.rand(2, 5, 1) + 0.5, torch.rand(12) + 0.1
    answer = Steps(size=0.05, zero=20)
    reading = Reading(steps=fitted(rows / reaches), reaches=reaches)
    ours, plain = Product(weight, bias, reading), Portable(weight, bias, reading)
    steps = ours.taken(rows, scale)
    # A number between two steps may become either.
    torch.testing.assert_close(
        plain.taken(rows, scale), reading.steps.value(steps), rtol=0, atol=1.001 * reading.steps.size
    )
    taken = reading.steps.value(steps)
    torch.testing.assert_close(plain(taken, torch.float32), ours(steps, torch.float32), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(plain.added(taken, onto), ours.added(steps, onto), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        plain.activated(taken, activation), ours.activated(steps, activation), rtol=1e-4, atol=1e-4
    )
    stepped = plain.activated(taken, activation, answer)
    torch.testing.assert_close(
        stepped, answer.value(ours.activated(steps, activation, answer)), rtol=0, atol=1.001 * answer.size
    )
    assert torch.equal(answer.value(answer.of(stepped, torch.ones(()))), stepped)


@pytest.mark.parametrize("name", NESTS)
def test_a_portable_network_is_the_rounded_one(name: str):
    torch.manual_seed(0)
    model, images = small(name), torch.randn(6, 3, 16, 16)
    readings = measured(model, images)
    budget = (model.least_budget(16) + 1) / 2
    with torch.no_grad():
        exact, ours, plain = (
            network(images, budget=budget).tokens
            for network in (model, quantized(model, readings), portable(model, readings))
        )
    lost = (ours - exact).norm()
    assert (plain - ours).norm() <= lost
    assert (plain - exact).norm() <= 1.3 * lost
    with pytest.raises(ValueError, match="readings must be of a network with"):
        portable(model, readings[:-1])
