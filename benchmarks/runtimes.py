"""Ways to run a network: torch as it is, forward or backward too, compiled, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.onnx_graph import vit_graph
from nestor.programs.openvino import core
from nestor.programs.rows import quicken

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from nestor.models.plain import Plain

    Call = Callable[[], object]


class UnavailableError(Exception):
    """Something cannot run here; the message is the reason in a few words."""


def predict(network: nn.Module, inputs: Tensor) -> Call:
    """Inputs to answers.

    Raises:
        UnavailableError: the network cannot do it.
    """
    network.eval()

    def call() -> Tensor:
        with torch.inference_mode():
            return network(inputs)

    return _tried(call)


def step(network: nn.Module, inputs: Tensor, precision: str) -> Call:
    """Forward and backward, as in training; weights are in single precision and autocast does the rest.

    Raises:
        UnavailableError: the network cannot do it.
    """
    network.train()
    kind = getattr(torch, precision)

    def call() -> None:
        with torch.autocast(inputs.device.type, kind, enabled=kind != torch.float32):
            loss = network(inputs).float().square().mean()
        loss.backward()
        network.zero_grad(set_to_none=True)

    return _tried(call)


def compiled(network: nn.Module, inputs: Tensor) -> Call:
    """torch.compile with frozen weights, which lets inductor pack them and fuse bias and GELU into the matmuls.

    Raises:
        UnavailableError: there is no C++ compiler, or compiling fails.
    """
    if compiler() is None:
        raise UnavailableError("no compiler")

    def first() -> Call:
        # Once as it is, since what a network remembers from its first call would have it compiled again.
        predict(network, inputs)
        run = torch.compile(network, dynamic=False, options={"freezing": True})

        def call() -> Tensor:
            with torch.inference_mode():
                return run(inputs)

        return _tried(call)

    return _quietly(first)


def compiler() -> str | None:
    """The C++ compiler that inductor would take; None where there is none."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX", usual))


def onnxruntime(plain: Plain, images: Tensor, *, eight: bool = False) -> Call:
    """ONNX Runtime, in single precision or with its own dynamic rounding to eight bits.

    Raises:
        UnavailableError: it or onnx is missing, or the pictures are not in single precision.
    """
    _import("onnx")
    package = _import("onnxruntime")
    if images.dtype != torch.float32:
        raise UnavailableError("no bfloat16 on CPUs")
    options = package.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin after the call would slow the next candidate.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    graph = _rounded(vit_graph(plain, len(images))) if eight else vit_graph(plain, len(images))
    session = package.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    given = {"images": images.numpy()}
    return lambda: session.run(["logits"], given)[0]


def openvino(network: nn.Module, images: Tensor) -> Call:
    """OpenVINO, computing in the precision of the pictures.

    Args:
        network: in single precision, whatever the pictures' is; OpenVINO rounds the weights itself.
        images: (B, 3, H, W).

    Raises:
        UnavailableError: it is missing, or cannot take the network.
    """
    package = _import("openvino")
    given = images.float()

    def first() -> Call:
        with torch.no_grad():
            exported = torch.export.export(network.eval(), (given,))
        settings = {
            "INFERENCE_PRECISION_HINT": "f32" if images.dtype == torch.float32 else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        model = package.convert_model(exported)
        # A shape that is known is run with less around it.
        model.reshape(list(given.shape))
        quicken(model)
        request = core().compile_model(model, "CPU", settings).create_infer_request()
        array = given.numpy()
        return _tried(lambda: request.infer([array])[0])

    return _quietly(first)


def _rounded(graph: bytes) -> bytes:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Fused operators of its own are foreign to it.
    numbers = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rounded.onnx")
        model = onnx.load_from_string(graph)
        quantize_dynamic(model, file, per_channel=True, weight_type=QuantType.QInt8, extra_options=numbers)
        return file.read_bytes()


def _tried(call: Call) -> Call:
    """The call, if it works."""
    try:
        call()
    except RuntimeError as error:
        raise UnavailableError(f"fails: {str(error).strip().splitlines()[0]}") from error
    return call


def _quietly(call: Callable[[], Any]) -> Any:
    # Compilers and tracers warn of what they meet on the way, which says nothing about speed.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{name} is not installed") from error
