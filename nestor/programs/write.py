"""From a network to checked files: one for each budget."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nestor import store
from nestor.programs.fixed import Fixed, Interface
from nestor.programs.graphs import run_torch, write_torch
from nestor.programs.onnx import run_onnx, write_onnx
from nestor.programs.openvino import run_openvino, write_openvino
from nestor.programs.parity import check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.vit import ViT
    from nestor.programs.fixed import Rounding

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
_INSTALL = {"onnx": "pip install 'nestor[export]'", "openvino": "pip install --no-deps openvino"}
_RUN = {"onnx": run_onnx, "torch": run_torch, "openvino": run_openvino}
# An ONNX file is one protocol buffer, which may not hold more than 2 GiB.
_MOST = 2**31 - 2**24


def write(
    model: ViT,
    out: str | Path,
    *,
    interface: Interface,
    budgets: Sequence[float] = (1.0,),
    format: str = "onnx",
    rounding: Rounding | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a network as a program for each budget, once each was found to give what the network gives.

    Args:
        model: the network.
        out: the file. Of several budgets each has one, with the budget in its name: `vit-0.5.onnx` for `vit.onnx`.
        interface: what the programs take and give.
        budgets: one or several.
        format: `onnx`, where the programs of several budgets share one file of weights, `vit.onnx.data`; `openvino`,
            each with its weights in a `.bin` beside it; or `torch`, programs of torch.export, with weights inside.
        rounding: what rounds its products to eight bits, as in Fixed; for openvino.
        overwrite: whether files that are there may be replaced.

    Returns:
        The files that were written: programs in the order of the budgets, then the weights where these lie apart.

    Raises:
        ValueError: when the format or the name is not known, a file is there already, budget, size, or outputs do not
            fit the network, the format has no eight bits, or a program differs from the network by more than
            1e-4, or in eight bits by more than twice what rounding costs.
        ImportError: when packages are missing.
        OSError: when the files cannot be written.
    """
    paths = files(out, budgets, format)
    if rounding is not None and format != "openvino":
        raise ValueError(f"eight bits are for programs in the format openvino; got {format}. Leave one of them out.")
    weights = paths[0].with_name(f"{Path(out).name}.data") if format == "onnx" and _apart(model, paths) else None
    apart = tuple(path.with_suffix(".bin") for path in paths) if format == "openvino" else ()
    written = (*paths, *apart) if weights is None else (*paths, weights)
    if not overwrite and (there := [path for path in written if path.exists()]):
        raise ValueError(f"{there[0]} exists already. Name another file, or allow overwriting.")
    require(format)
    at = dict(zip(paths, budgets, strict=True))
    programs = {path: Fixed(model, budget, interface, rounding) for path, budget in at.items()}
    # A graph without its weights is worse than weights without a graph, so that these are put in place first.
    with store.together(written[::-1]) as stage:
        staged = {stage / path.name: program for path, program in programs.items()}
        if format == "onnx":
            write_onnx(staged, None if weights is None else stage / weights.name)
        else:
            (write_torch if format == "torch" else write_openvino)(staged)
        for path, program in staged.items():
            exact = Fixed(model, program.budget, interface) if program.rounded else None
            check(program, _RUN[format](path), path.name, exact)
    return written


def files(out: str | Path, budgets: Sequence[float], format: str) -> tuple[Path, ...]:
    """Where the programs of some budgets go.

    Raises:
        ValueError: when the format is not known, the name does not end as it should, there is no budget, or two are
            the same.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}.")
    out = Path(out).expanduser()
    if out.suffix != FORMATS[format]:
        raise ValueError(f"the name of a program in the format {format} must end with {FORMATS[format]}; got {out}.")
    if not budgets:
        raise ValueError("budgets must name at least one; got none. Try 0.5.")
    if len(budgets) == 1:
        return (out,)
    paths = tuple(out.with_stem(f"{out.stem}-{budget:g}") for budget in budgets)
    if len(set(paths)) < len(paths):
        raise ValueError(f"budgets must differ, since each has its own file; got {', '.join(map(str, budgets))}.")
    return paths


def require(format: str) -> None:
    """Check that the packages for a format are there.

    Raises:
        ImportError: when one is missing.
    """
    if missing := [name for name in _NEEDED.get(format, ()) if find_spec(name) is None]:
        raise ImportError(
            f"Programs in the format {format} need {' and '.join(missing)}. Install what is missing: {_INSTALL[format]}"
        )


def _apart(model: ViT, paths: Sequence[Path]) -> bool:
    """Whether weights need a file of their own."""
    return len(paths) > 1 or 4 * sum(tensor.numel() for tensor in model.state_dict().values()) > _MOST
