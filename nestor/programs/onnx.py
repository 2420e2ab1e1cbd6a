"""Networks as ONNX graphs."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from nestor.programs.fixed import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from nestor.programs.fixed import Fixed

OPSET = 20
_SMALL = 1024
_PAGE = 4096


def write_onnx(programs: Mapping[Path, Fixed], weights: Path | None) -> None:
    """Write one graph for each program.

    Experts are slices of the whole matrices inside the graph, which a runtime cuts once when it loads. So the tensors
    of all budgets are the same, and each is stored once.

    Args:
        programs: the files and what becomes of them.
        weights: a file in the same folder for the tensors of all programs; None where each file holds its own.
    """
    import onnx_ir as ir

    graphs = {path: graph(program) for path, program in programs.items()}
    if weights is not None:
        with weights.open("wb") as file:
            places: dict[bytes, int] = {}
            for made in graphs.values():
                for value in made.graph.initializers.values():
                    if value.const_value.nbytes >= _SMALL:
                        value.const_value = _outside(value.const_value, file, weights, places)
    for path, made in graphs.items():
        ir.save(made, path)


def graph(program: Fixed) -> Any:
    """An `onnx_ir.Model` with an input `images`, outputs as the program names them, and what it says of itself."""
    captured, aten = capture(program), torch.ops.aten
    with warnings.catch_warnings(), _silent():
        # What the exporter has to say of its own future is nothing that a caller could act on.
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            captured,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(program.names),
            custom_translation_table={
                aten.sort.stable: _sort,
                aten.scaled_dot_product_attention.default: _attention,
            },
        )
    assert made is not None
    made.model.metadata_props.update(program.facts())
    return made.model


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter logs which packages it could have translated from, had they been installed."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _operators() -> Any:
    """Of the ONNX version that is written; what they take and give is known only once a graph is traced."""
    import onnxscript

    return getattr(onnxscript, f"opset{OPSET}")


def _sort(tensor: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """torch.sort, for which there is no translation where it is stable; ties of TopK go to the lower index too."""
    onnx = _operators()
    length = onnx.Constant(value_ints=[tensor.shape[dim]])
    return onnx.TopK(tensor, length, axis=dim, largest=int(descending), sorted=1)


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None) -> Any:
    """Attention in four operators: the exporter's own translation reshapes the keys twice where the batch may vary."""
    onnx = _operators()
    scale = onnx.Constant(value_float=query.shape[-1] ** -0.5)
    scores = onnx.Mul(onnx.MatMul(query, onnx.Transpose(key, perm=[0, 1, 3, 2])), scale)
    scores = scores if attn_mask is None else onnx.Add(scores, attn_mask)
    return onnx.MatMul(onnx.Softmax(scores, axis=-1), value)


def run_onnx(file: Path) -> Callable[[Tensor], list[Tensor]]:
    """Pictures to outputs through ONNX Runtime on the CPU."""
    # Read once, on import: it would keep a database of its use in the home folder, for its makers.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(given) for given in session.run(None, {"images": images.numpy()})]


def _outside(tensor: Any, file: BinaryIO, weights: Path, places: dict[bytes, int]) -> Any:
    """The same tensor as a part of the file, to which it is added unless its bytes are there."""
    import onnx_ir as ir

    content = tensor.tobytes()
    key = hashlib.sha256(content).digest()
    if key not in places:
        # Runtimes map whole pages of the file.
        file.write(bytes(-file.tell() % _PAGE))
        places[key] = file.tell()
        file.write(content)
    return ir.ExternalTensor(
        weights.name,
        places[key],
        len(content),
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=weights.parent,
    )
