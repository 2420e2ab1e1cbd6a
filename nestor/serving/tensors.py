"""Requests and answers of the Open Inference Protocol (version 2): JSON, with tensors in it or as bytes behind it."""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch

from nestor.serving.network import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from nestor.serving.answer import Answer
    from nestor.serving.network import Input, Served
    from nestor.serving.order import Order

LOGITS, EXPERTS = "logits", "experts"


@dataclass(frozen=True, kw_only=True, eq=False)
class Inference:
    """A request for inference.

    Attributes:
        id: the client's own name for it.
        order: what it was admitted as.
        items: (B, ...), what the network takes.
        outputs: names of what is wanted, each with whether it is wanted as bytes.
    """

    id: str | None
    order: Order
    items: Tensor
    outputs: Mapping[str, bool]


def outputs(served: Served) -> dict[str, tuple[str, list[int]]]:
    """What a network gives: name -> datatype and shape, -1 for the batch."""
    rows, columns = served.cells
    experts = {EXPERTS: ("INT32", [-1, rows * columns])} if rows else {}
    return {LOGITS: ("FP32", [-1, len(served.labels)])} | experts


def metadata(name: str, version: int, served: Served) -> dict[str, Any]:
    """What a client may know of a network."""
    return {
        "name": name,
        "versions": [str(version)],
        "platform": "nestor",
        "inputs": [{"name": served.input.name, "datatype": served.input.datatype, "shape": [-1, *served.input.shape]}],
        "outputs": [
            {"name": key, "datatype": datatype, "shape": shape} for key, (datatype, shape) in outputs(served).items()
        ],
        "parameters": {"budgets": list(served.budgets), "labels": list(served.labels)},
    }


def read(
    body: bytes, header: str | None, served: Served, admit: Callable[[int, Mapping[str, Any]], Order]
) -> Inference:
    """Read a request.

    Args:
        body: the request.
        header: `Inference-Header-Content-Length`, how many bytes of JSON come before the tensors.
        served: the network.
        admit: told how many rows there are, and the parameters, before any number is read; who is turned away costs
            no more.

    Raises:
        ValueError: it is not what the protocol, or this network, wants.
    """
    size = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) < 16 and int(header) <= len(body)):
            raise ValueError(
                f"Inference-Header-Content-Length must be a number up to the body's {len(body)} bytes; got {header!r}."
            )
        size = int(header)
    asked = _json(body[:size])
    parameters = _parameters(asked)
    identity = asked.get("id")
    if identity is not None and not isinstance(identity, str):
        raise ValueError(f"id must be a text; got {_shown(identity)}.")
    given = asked.get("inputs")
    if not isinstance(given, list) or len(given) != 1:
        raise ValueError(f"inputs must be a list with the one tensor {served.input.name!r}; got {_shown(given)}.")
    tensor, wanted = _object(given[0], "an input"), _wanted(asked, parameters, served)
    dims = _dims(tensor, served.input)
    order = admit(dims[0], parameters)
    items = _tensor(tensor, dims, memoryview(body)[size:], served.input)
    return Inference(id=identity, order=order, items=items, outputs=wanted)


def write(name: str, inference: Inference, answer: Answer) -> tuple[bytes, int | None]:
    """Write an answer: the body, and how many bytes of it are JSON; None if all are."""
    tensors = {LOGITS: answer.logits, EXPERTS: answer.experts}
    described, tail = [], []
    for key, binary in inference.outputs.items():
        tensor = tensors[key]
        if tensor is None:
            raise ValueError(f"the network gives no {key!r}.")
        datatype, _ = outputs(answer.served)[key]
        entry: dict[str, Any] = {"name": key, "datatype": datatype, "shape": list(tensor.shape)}
        if binary:
            raw = tensor.contiguous().numpy().astype("<f4" if datatype == "FP32" else "<i4").tobytes()
            entry["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            entry["data"] = tensor.flatten().tolist()
        described.append(entry)
    document: dict[str, Any] = {"model_name": name, "model_version": str(answer.version)}
    if inference.id is not None:
        document["id"] = inference.id
    document["parameters"] = facts(answer)
    document["outputs"] = described
    head = json.dumps(document, allow_nan=False).encode()
    return b"".join((head, *tail)), len(head) if tail else None


def facts(answer: Answer) -> dict[str, Any]:
    """How an answer came about: budget, rows of the batch, rows left in the queue, milliseconds."""
    return {
        "budget": answer.budget,
        "batch": answer.batch,
        "queue": answer.queue,
        "queue_ms": round(1e3 * answer.waited, 3),
        "batch_ms": round(1e3 * answer.ran, 3),
    }


def wishes(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a request's parameters say about how it is to be run, as fields of an order.

    `budget` fixes the budget, `floor` and `ceiling` bound it; `deadline_ms`, or `timeout` in microseconds; `priority`,
    1 to 3, 0 for the ordinary one.

    Raises:
        ValueError: one is of the wrong kind, or they contradict each other.
    """
    found = {name: _number(parameters[name], name) for name in _WISHES if parameters.get(name) is not None}
    if "budget" in found and ("floor" in found or "ceiling" in found):
        raise ValueError("budget fixes the budget, floor and ceiling bound it; give one or the other.")
    order: dict[str, Any] = {name: found[name] for name in ("floor", "ceiling") if name in found}
    if "budget" in found:
        order |= {"floor": found["budget"], "ceiling": found["budget"]}
    limits = [found[name] * unit for name, unit in (("deadline_ms", 1e-3), ("timeout", 1e-6)) if found.get(name)]
    if limits:
        order["deadline"] = min(limits)
    if found.get("priority"):
        if found["priority"] % 1:
            raise ValueError(f"priority must be 1 (first), 2 or 3 (last); got {found['priority']}.")
        order["priority"] = int(found["priority"])
    return order


_WISHES = ("budget", "floor", "ceiling", "deadline_ms", "timeout", "priority")


def _wanted(asked: Mapping[str, Any], parameters: Mapping[str, Any], served: Served) -> dict[str, bool]:
    known, binary = outputs(served), _flag(parameters, "binary_data_output", False)
    listed = asked.get("outputs")
    if listed is None or listed == []:
        return dict.fromkeys(known, binary)
    if not isinstance(listed, list):
        raise ValueError(f"outputs must be a list; got {_shown(listed)}.")
    wanted = {}
    for each in listed:
        output = _object(each, "an output")
        name = output.get("name")
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"outputs must be among {', '.join(known)}; got {_shown(name)}.")
        wanted[name] = _flag(_parameters(output), "binary_data", binary)
    return wanted


def _dims(given: Mapping[str, Any], wanted: Input) -> list[int]:
    name = wanted.name
    if given.get("name") != name:
        raise ValueError(f"the input must be called {name!r}; got {_shown(given.get('name'))}.")
    if given.get("datatype") != wanted.datatype:
        raise ValueError(f"{name} must be of datatype {wanted.datatype}; got {_shown(given.get('datatype'))}.")
    dims = given.get("shape")
    if not _whole(dims) or tuple(dims[1:]) != wanted.shape:
        raise ValueError(f"{name} must be of shape {[-1, *wanted.shape]}, at least one item; got {_shown(dims)}.")
    return dims


def _tensor(given: Mapping[str, Any], dims: list[int], tail: memoryview, wanted: Input) -> Tensor:
    name, dtype = wanted.name, DATATYPES[wanted.datatype][1]
    count = math.prod(dims)
    size = _parameters(given).get("binary_data_size")
    if size is None:
        if len(tail):
            raise ValueError(f"{len(tail)} bytes follow the JSON that no input claims with binary_data_size.")
        values = _numbers(given.get("data"), count, dtype)
    else:
        needed = dtype.itemsize * count
        if type(size) is not int or size != len(tail) or size != needed:
            raise ValueError(
                f"binary_data_size must be {needed} bytes for shape {dims}, and as many must follow the JSON; got "
                f"{_shown(size)} and {len(tail)}."
            )
        values = np.frombuffer(tail, dtype).astype(dtype.newbyteorder("="))
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must hold finite numbers; got NaN or infinity.")
    # Who asks for what lies beyond a table would take the whole batch along.
    if wanted.below is not None and not ((values >= 0) & (values < wanted.below)).all():
        raise ValueError(
            f"{name} must hold numbers from 0 to {wanted.below - 1}; got {values.min():g} to {values.max():g}."
        )
    return torch.from_numpy(values.reshape(dims))


def _whole(dims: object) -> TypeGuard[list[int]]:
    # True and False are numbers to Python.
    return isinstance(dims, list) and len(dims) > 0 and all(type(size) is int and size > 0 for size in dims)


def _numbers(data: object, count: int, dtype: np.dtype) -> np.ndarray:
    if not isinstance(data, list):
        raise ValueError(f"data must be a list of numbers; got {_shown(data)}.")
    try:
        # NumPy would take texts and truth values for numbers, and fractions for whole ones.
        values = np.asarray(data)
        with np.errstate(over="ignore"):
            kinds = "iu" if dtype.kind == "i" else "iuf"
            values = values.astype(dtype.newbyteorder("=")) if values.dtype.kind in kinds else None
    except (ValueError, OverflowError):
        values = None
    if values is None or values.size != count:
        found = "something else" if values is None else f"{values.size}"
        raise ValueError(f"data must hold {count} numbers, flat or in nested lists; got {found}.")
    return values.reshape(-1)


def _json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("the request is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"the request is not JSON: {error}.") from None
    return _object(found, "the request")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object; got {_shown(value)}.")
    return value


def _parameters(of: Mapping[str, Any]) -> dict[str, Any]:
    # What is null is not there, here as everywhere else in a request.
    given = of.get("parameters")
    return {} if given is None else _object(given, "parameters")


def _flag(values: Mapping[str, Any], name: str, otherwise: bool) -> bool:
    value = values.get(name, otherwise)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false; got {_shown(value)}.")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise ValueError(f"{name} must be a number; got {_shown(value)}.")
    return float(value)


def _shown(value: object) -> str:
    # Neither long nor deep, whatever was sent.
    return reprlib.repr(value)
