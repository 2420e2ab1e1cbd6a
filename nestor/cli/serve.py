"""`nestor serve`: answer pictures over HTTP, at the budget that the traffic allows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nestor.cli import parse
from nestor.cli.console import give, say, waiting
from nestor.cli.console import out as results
from nestor.cli.options import AsJson, Budgets, Folder, Size

_LOCAL = ("127.0.0.1", "::1", "localhost")


def serve(
    model: Folder,
    p95: Annotated[
        str, typer.Option("--p95", help="Time within which 95 of 100 requests shall be answered, like 80ms.")
    ] = "100ms",
    budgets: Budgets = None,
    size: Size = None,
    precision: Annotated[
        str, typer.Option("--precision", help="float32, bfloat16, or int8 after nestor quantize.")
    ] = "float32",
    name: Annotated[
        str | None,
        typer.Option("--name", help="Of the model, in paths; by default the folder's.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 8000,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Most pictures that run together.")] = 16,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            help="File of API keys: a name and its secret on each line. Without it everybody may ask."
            " Names share the server evenly.",
            show_default=False,
        ),
    ] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Of a request's body.")] = 16_000_000,
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1, help="Of a picture.")] = 16_000_000,
    as_json: AsJson = False,
) -> None:
    """Serve a network that spends less on each request when traffic grows; SIGTERM drains, SIGHUP loads it anew.

    Example: nestor serve elastic/ --p95 80ms
    """
    target = parse.seconds(p95, "p95")
    wanted = parse.budgets(budgets)
    parse.precision(precision, (*parse.PRECISIONS, "int8"))
    secrets = {} if keys is None else parse.keys(keys)
    try:
        from nestor.serving.lines import log_lines
        from nestor.serving.server import Server
    except ModuleNotFoundError as error:
        raise ImportError(f"Serving needs {error.name}. Install it: pip install 'nestor[serve]'") from error

    import torch

    from nestor.serving.controller import Policy
    from nestor.serving.guard import Keys, Limits
    from nestor.serving.remote import Remote

    log_lines()
    # The network's process has the cores; what is done here is small.
    torch.set_num_threads(1)
    asked = json.dumps({"folder": str(model), "budgets": wanted, "size": size, "precision": precision})
    with waiting(f"Loading {model}"):
        server = Server(
            lambda: Remote([sys.executable, "-m", "nestor.cli.worker", asked], most=batch),
            Policy(target=target),
            batch=batch,
            name=name or model.expanduser().resolve().name,
            host=host,
            port=port,
            limits=Limits(size=max_bytes, pixels=max_pixels),
            keys=Keys(secrets),
        )
    if host not in _LOCAL and not secrets:
        say(f"Everybody who reaches {host} may ask; --keys says who may.")
    declared = server.engine.served.budgets
    shown = ", ".join(f"{budget:g}" for budget in declared)
    if as_json:
        give({"address": server.address, "name": server.front.name, "budgets": declared})
    else:
        results().print(f"{server.address} serves {server.front.name} at budgets {shown}", markup=False, soft_wrap=True)
    server.serve_until_told()
