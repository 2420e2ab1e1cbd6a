"""Networks as programs of OpenVINO, which runs them on CPUs with much less around each product than torch."""

from __future__ import annotations

import threading
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from nestor.programs.fixed import capture
from nestor.programs.rows import quicken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nestor.programs.fixed import Fixed

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""What OpenVINO calls them."""
_OWN = "nestor"
_INPUT = "images"
_LOADING = threading.Lock()


def core() -> Any:
    """OpenVINO itself, one for the whole process and for as long as it lives.

    Each one gives the thread that loads it another stack for signals, and puts the one before back when it is let go.
    Of two, or in another thread, what is put back may be gone, and the next signal ends the process without a word.

    Raises:
        ImportError: OpenVINO is missing.
    """
    with _LOADING:
        return _loaded()


@cache
def _loaded() -> Any:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ImportError("This program needs openvino. Install it: pip install --no-deps openvino") from error
    return openvino.Core()


def write_openvino(programs: Mapping[Path, Fixed]) -> None:
    """Write one program for each file, `.xml`, with its weights beside it, `.bin`."""
    import openvino
    from openvino.frontend.pytorch import ConversionExtension

    known = [ConversionExtension("nestor.stepped.default", _stepped)]
    for path, program in programs.items():
        with warnings.catch_warnings():
            # Tracers and converters warn of what they meet on the way, which nobody here can act on.
            warnings.simplefilter("ignore")
            model = openvino.convert_model(capture(program), extension=known)
        side = program.interface.size
        model.reshape([-1, program.model.settings.channels, side, side])
        quicken(model)
        model.inputs[0].get_tensor().set_names({_INPUT})
        for place, name in zip(model.outputs, program.names, strict=True):
            place.get_tensor().set_names({name})
        for key, text in program.facts().items():
            model.set_rt_info(text, [_OWN, key.removeprefix(f"{_OWN}.")])
        openvino.save_model(model, path, compress_to_fp16=False)


def _stepped(call: Any) -> Any:
    """`nestor.ops.portable.stepped` as OpenVINO knows it, which makes products of eight-bit numbers of what follows."""
    import openvino.opset14 as ops

    size, zero = (call.get_values_from_const_input(place) for place in (1, 2))
    ends = [np.float32((end - zero) * size) for end in (0, 255)]
    return ops.fake_quantize(call.get_input(0), *ends, *ends, 256).outputs()


def run_openvino(file: Path) -> Program:
    """Pictures to outputs through the program, in single precision."""
    return Program(file)


@final
class Program:
    """A program at one budget on the CPU, compiled for single pictures and for batches apart.

    A shape that is known in advance is run with less around it; one picture at a time is what that matters for.

    Args:
        file: the `.xml`, as `nestor export --format openvino` writes it, with the `.bin` beside it.
        precision: that products are computed in, float32 or bfloat16.

    Attributes:
        facts: what the program says of itself, `nestor.programs.fixed.Fixed.facts` without the prefix; empty for one
            that Nestor did not write.
        names: of the outputs.

    Raises:
        ImportError: OpenVINO is missing.
        ValueError: the precision is not known, or the file cannot be read.
    """

    def __init__(self, file: str | Path, *, precision: str = "float32"):
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be {' or '.join(PRECISIONS)}; got {precision!r}.")
        self._core, self.file = core(), Path(file)
        self._settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        model = self._read()
        self.names = tuple(place.any_name for place in model.outputs)
        told = model.get_rt_info([_OWN]).value if model.has_rt_info([_OWN]) else {}
        self.facts = {key: str(text) for key, text in told.items()}
        self._shape = [side.get_length() for side in list(model.inputs[0].partial_shape)[1:]]
        self._requests: dict[bool, Any] = {}

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W), as the program takes them -> the outputs, in the order of their names.

        Raises:
            ValueError: pictures of another shape.
        """
        if list(images.shape[1:]) != self._shape:
            raise ValueError(f"this program takes pictures (B, {self._shape}); got {tuple(images.shape)}.")
        found = self._request(len(images) == 1).infer([images.contiguous().numpy()])
        # What a request gives is its own, and is written over by the next one.
        return tuple(torch.from_numpy(found[number].copy()) for number in range(len(self.names)))

    def _request(self, alone: bool) -> Any:
        if alone not in self._requests:
            model = self._read()
            if alone:
                model.reshape([1, *self._shape])
            compiled = self._core.compile_model(model, "CPU", self._settings)
            self._requests[alone] = compiled.create_infer_request()
        return self._requests[alone]

    def _read(self) -> Any:
        try:
            return self._core.read_model(str(self.file))
        except RuntimeError as error:
            raise ValueError(f"{self.file} is no program that OpenVINO can read. Export it again.") from error
