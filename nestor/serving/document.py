"""The server's OpenAPI document, with what FastAPI cannot know of it: the network's tensors, keys, and headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from nestor.serving import schemas
from nestor.serving.guard import OPEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI

    from nestor.serving.network import Served

BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
FAILURES = {
    400: "The request is wrong.",
    401: "An API key is needed.",
    404: "There is no such model.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "The body is encoded.",
    422: "A parameter is out of bounds.",
    429: "Too much traffic; Retry-After says when to ask again.",
    500: "The server failed, or the network's answer is not finite.",
    503: "The server starts, stops, or lost a batch; ask again.",
    504: "The deadline has passed.",
}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["picture"],
        "properties": {"picture": {"type": "string", "format": "binary"}},
    }
}
PICTURE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": BYTES, "image/*": BYTES, "multipart/form-data": _FORM},
    }
}
_ID = r"^[A-Za-z0-9._-]{1,64}$"
_GIVEN_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "The client's own name for the request; one of another form is replaced.",
    "schema": {"type": "string"},
}
_TOLD_ID = {
    "description": "Names the request in the server's log.",
    "required": True,
    "schema": {"type": "string", "pattern": _ID},
}
_AGAIN = {
    "description": "Seconds after which it is worth asking again.",
    "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
}
_SIZE = "Inference-Header-Content-Length"
_HEAD = "Bytes of JSON; the tensors' own bytes come behind them."
_GIVEN_SIZE = {
    "name": _SIZE,
    "in": "header",
    "required": False,
    "description": _HEAD,
    "schema": {"type": "integer", "minimum": 0},
}
_TOLD_SIZE = {"description": _HEAD, "schema": {"type": "string", "pattern": "^[0-9]+$"}}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def fails(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer."""
    return {code: {"model": schemas.Failure, "description": FAILURES[code]} for code in codes}


def document(app: FastAPI, *, name: str, served: Served, most: int, keyed: bool) -> dict[str, Any]:
    """What the server takes and answers.

    Args:
        app: with its routes.
        name: of the model, in paths.
        served: the network.
        most: items of the largest request.
        keyed: whether a key is needed.
    """
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    if keyed:
        found["components"]["securitySchemes"] = _SCHEMES
    for path, operations in found["paths"].items():
        for operation in operations.values():
            _complete(operation, path, keyed)
            for parameter, schema in (("name", {"enum": [name]}), ("version", {"pattern": "^[1-9][0-9]*$"})):
                if f"{{{parameter}}}" in path:
                    of = {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"} | schema}
                    operation["parameters"].append(of)
            if path.endswith("/infer"):
                operation["parameters"].append(_GIVEN_SIZE)
                told = operation["responses"]["200"]
                told["headers"][_SIZE] = _TOLD_SIZE
                told["content"]["application/octet-stream"] = BYTES
                operation["requestBody"] = {
                    "required": True,
                    "content": {
                        "application/json": {"schema": _asked(served, most)},
                        "application/octet-stream": BYTES,
                    },
                }
    return found


def _complete(operation: dict[str, Any], path: str, keyed: bool) -> None:
    """Add what is true of every request that the guard lets by."""
    operation.setdefault("parameters", []).append(_GIVEN_ID)
    responses = operation["responses"]
    if path not in OPEN:
        for code in (401, 429, 500) if keyed else (429, 500):
            content = {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}
            responses.setdefault(str(code), {"description": FAILURES[code], "content": content})
        if keyed:
            operation["security"] = [{scheme: []} for scheme in _SCHEMES]
    for code, response in responses.items():
        response["headers"] = {"X-Request-ID": _TOLD_ID}
        if code in ("429", "503", "504"):
            response["headers"]["Retry-After"] = _AGAIN


def _asked(served: Served, most: int) -> dict[str, Any]:
    """The schema of a request of the Open Inference Protocol to one network."""
    wanted, flag = served.input, {"type": "boolean"}
    rows = {"type": "integer", "minimum": 1, "maximum": most}
    shape = [rows, *({"const": size} for size in wanted.shape)]
    number: dict[str, Any] = {"type": "number", "minimum": 0}
    tensor = {
        "name": {"const": wanted.name},
        "datatype": {"const": wanted.datatype},
        "shape": {"type": "array", "prefixItems": shape, "minItems": len(shape), "maxItems": len(shape)},
        "parameters": _optional({"binary_data_size": {"type": ["integer", "null"], "minimum": 0}}),
        "data": {"description": "Numbers, flat or in nested lists; or none, where bytes follow the JSON."},
    }
    share = number | {"type": ["number", "null"], "maximum": 1}
    wishes = {
        "budget": {"enum": [*served.budgets, None]},
        "floor": share,
        "ceiling": share,
        "deadline_ms": number | {"type": ["number", "null"]},
        "timeout": number | {"type": ["number", "null"], "description": "Microseconds."},
        "priority": {"enum": [0, 1, 2, 3, None]},
        "binary_data_output": flag,
    }
    output = {"name": {"type": "string"}, "parameters": _optional({"binary_data": flag})}
    outputs = {"type": ["array", "null"], "items": _object(output, "name")}
    inputs = {"type": "array", "minItems": 1, "maxItems": 1, "items": _object(tensor, "name", "datatype", "shape")}
    asked = {"id": {"type": ["string", "null"]}, "parameters": _optional(wishes), "inputs": inputs, "outputs": outputs}
    return _object(asked, "inputs")


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _optional(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": ["object", "null"], "properties": properties}
