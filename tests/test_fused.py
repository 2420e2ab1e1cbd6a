"""Kernels for all bands at once, in Triton's interpreter or on a GPU, against the plain operators; gradients too."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import run

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NESTS, small
from torch import Tensor

from nestor.models.saved import load_model, save_model
from nestor.models.vit import ViT
from nestor.ops import fused, kernel
from nestor.ops.linear import ACTIVATIONS
from nestor.surgery.fuse import fuse
from nestor.surgery.quantize import quantize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2)}
# Tokens of each band: many, one, none, and more than a tile holds.
COUNTS = [(5, 3), (1,), (0, 4), (70, 1, 2)]
CUT, WIDTH, UNITS = (4, 12, 24), 24, 22


def close(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> None:
    rtol, atol = BOUNDS[dtype]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs.to(dtype), rtol=rtol, atol=atol)


def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def normal(rows: Tensor, tail: Tensor) -> Tensor:
    return rows / ((rows.square().sum(-1, keepdim=True) + tail) / WIDTH + 1e-6).sqrt()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("counts", COUNTS)
def test_asked_is_norm_then_product_then_activation(
    dtype: torch.dtype, activation: str | None, counts: tuple[int, ...]
):
    widths, whole = CUT[-len(counts) :], made(UNITS, WIDTH, dtype=dtype)
    rows = [made(2, n, d, dtype=dtype) for n, d in zip(counts, widths, strict=True)]
    tails = [made(2, n, 1).square() for n in counts]
    weights, biases = [whole[:, :d] for d in widths], [made(UNITS, dtype=dtype) for _ in widths]
    found = fused.asked(rows, tails, weights, biases, width=WIDTH, eps=1e-6, activation=activation)
    exact = zip(rows, tails, weights, biases, strict=True)
    plain = [normal(x.double(), t) @ w.double().T + b.double() for x, t, w, b in exact]
    close(found, plain if activation is None else [ACTIVATIONS[activation](y) for y in plain], dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("counts", COUNTS)
def test_told_is_product_then_gate_then_sum(dtype: torch.dtype, gated: bool, counts: tuple[int, ...]):
    widths, whole = CUT[-len(counts) :], made(WIDTH, UNITS, dtype=dtype)
    # As attention leaves them: slices of what all bands share.
    joined = made(2, sum(counts), UNITS, dtype=dtype)
    rows, onto = joined.split(counts, 1), [made(2, n, d, dtype=dtype) for n, d in zip(counts, widths, strict=True)]
    weights, biases = [whole[:d] for d in widths], [made(d, dtype=dtype) for d in widths]
    gates = [made(2, n, 1) for n in counts] if gated else None
    found = fused.told(rows, weights, biases, onto, gates)
    exact = zip(rows, weights, biases, onto, gates or [torch.ones(1, device=DEVICE)] * len(counts), strict=True)
    close(found, [o.double() + g * (x.double() @ w.double().T + b.double()) for x, w, b, o, g in exact], dtype)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=4), st.integers(1, 70))
def test_products_and_their_gradients(shapes: list[tuple[int, int]], units: int):
    whole = made(units, max(k for _, k in shapes)).requires_grad_()
    rows = [made(1, n, k).requires_grad_() for n, k in shapes]
    biases = [made(units).requires_grad_() for _ in shapes]
    found = fused.products(rows, [whole[:, : x.shape[-1]] for x in rows], biases)
    plain = [x @ whole[:, : x.shape[-1]].T + b for x, b in zip(rows, biases, strict=True)]
    close(found, plain)
    weighed, leaves = [torch.randn_like(y) for y in plain], [*rows, whole, *biases]
    mine, theirs = (torch.autograd.grad(each, leaves, weighed) for each in (found, plain))
    for ours, exact in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "activation"), [*((name, "gelu") for name in NESTS), ("own", "swiglu")])
def test_a_fused_network_answers_and_learns_as_the_network_does(name: str, activation: str):
    model = small(name, activation=activation).to(DEVICE)
    other, images = fuse(model), made(2, 3, 16, 16)
    least = model.least_budget(16) if model.settings.nest.experts > 1 else 1.0
    budget = (1 + least) / 2
    with torch.inference_mode():
        close([other(images, budget=budget).logits], [model(images, budget=budget).logits])
    assert other.macs(other.plan(16, budget)) == model.macs(model.plan(16, budget))
    for network in (model, other):
        network(images, budget=budget).logits.square().sum().backward()
    wanted = dict(model.named_parameters())
    for key, parameter in other.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key].grad, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: k + m)


def test_merged_tokens_count_as_often_as_they_are():
    settings = small("own").settings
    nest = replace(settings.nest, merge=0.5)
    model = ViT(replace(settings, nest=nest, depth=4)).to(DEVICE)
    images = made(2, 3, 16, 16)
    assert model.sizes(model.plan(16, 0.5))[-1] != model.plan(16, 0.5)
    with torch.inference_mode():
        close([fuse(model)(images, budget=0.5).logits], [model(images, budget=0.5).logits])


def test_bfloat16_is_as_near_as_it_is_without():
    model, images = small("own").to(DEVICE), made(4, 3, 16, 16)
    low = small("own").to(DEVICE, torch.bfloat16)
    with torch.inference_mode():
        exact, plain, found = (
            net(images.to(net.embed.weight), budget=0.6).tokens.float() for net in (model, low, fuse(low))
        )
    assert (found - exact).norm() <= 1.5 * (plain - exact).norm()


def test_it_learns_under_autocast():
    model, images, steps = small("own").to(DEVICE), made(4, 3, 16, 16), []
    for network in (model, fuse(model)):
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = network(images, budget=0.6).logits
        logits.float().square().sum().backward()
        steps.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert torch.cosine_similarity(*steps, dim=0) > 0.999


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nestor.ops import kernel

flags = {"BANDS": 2, "BIASED": True, "NORMAL": True, "ACTIVATION": "gelu", "ADDED": True, "GATED": True}
flags |= {"WIDE": False, "PRECISION": "ieee", "M": 64, "N": 64, "K": 32}
kinds = dict.fromkeys(("left", "right", "out", "biases", "onto"), ("*bf16",) * 2)
kinds |= dict.fromkeys(("tails", "gates"), ("*fp32",) * 2) | {"width": "i32", "eps": "fp32"}
kinds |= dict.fromkeys(flags, "constexpr")
signature = {name: kinds.get(name, ("i32",) * 2) for name in kernel._multiply.arg_names}
source = ASTSource(fn=kernel._multiply, signature=signature, constexprs=flags)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
assert made.asm["cubin"] and "wgmma" in made.asm["ptx"]
"""


def test_it_compiles_for_a_gpu_that_is_not_there():
    found = run([sys.executable, "-c", COMPILE], env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True)
    assert found.returncode == 0, found.stderr.decode()


def test_it_is_saved_as_the_network_is(tmp_path: Path):
    model, images = small("own").to(DEVICE), made(2, 3, 16, 16)
    save_model(fuse(model), tmp_path / "net")
    again = load_model(tmp_path / "net").to(DEVICE)
    with torch.inference_mode():
        assert torch.equal(again(images, budget=0.6).logits, model(images, budget=0.6).logits)


def test_what_cannot_be_fused_is_refused(monkeypatch: pytest.MonkeyPatch):
    if DEVICE == "cpu":
        rounded = quantize(small("own"), made(2, 3, 16, 16))
        with pytest.raises(ValueError, match="must be nested ones; got Int8Block"):
            fuse(rounded)
    monkeypatch.setattr(kernel, "interpreted", lambda: False)
    with pytest.raises(ValueError, match=r"run on CUDA GPUs; this network is on cpu\. Move it there"):
        fuse(small("own"))
    monkeypatch.setitem(sys.modules, "nestor.layers.fused", None)
    with pytest.raises(ImportError, match="need triton"):
        fuse(small("own"))
