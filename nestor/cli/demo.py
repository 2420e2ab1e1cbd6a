"""`nestor demo`: a web page to see a network spend less."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nestor.cli.console import give, say, waiting
from nestor.cli.console import out as results
from nestor.cli.options import AsJson, Folder, Size

_LOCAL = ("127.0.0.1", "::1", "localhost")
_MEASURED = "profile.json"


def demo(
    model: Folder,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Pictures to offer as samples, held-out ones, named as in nestor fit; by default real ones that are "
            "on this machine.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            help=f"What nestor profile --out wrote, for the curve; by default {_MEASURED} in the folder, and without "
            "it each picture's likeness to what the full network sees.",
            show_default=False,
        ),
    ] = None,
    size: Size = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 7860,
    as_json: AsJson = False,
) -> None:
    """Show a web page: drop a picture, drag the budget, see what the network looks at, answers and costs.

    Example: nestor demo elastic/ --data photos/
    """
    if profile is None and (model.expanduser() / _MEASURED).is_file():
        profile = model / _MEASURED
    measured = None if profile is None else _text(profile)
    if missing := [name for name in ("gradio", "matplotlib") if find_spec(name) is None]:
        raise ImportError(f"The page needs {' and '.join(missing)}. Install it: pip install 'nestor[page]'")

    import nestor
    from nestor.measure.cost import parameters
    from nestor.measure.record import Profile
    from nestor.page.chart import measured as curve
    from nestor.page.explore import Explorer
    from nestor.page.launch import Server
    from nestor.page.samples import bundled, from_data
    from nestor.page.view import View

    record = None if measured is None else Profile.from_json(measured)
    with waiting(f"Loading {model}"):
        network = nestor.load(str(model))
        # What was measured holds for pictures of its own size.
        explorer = Explorer(network, record.size if record is not None and size is None else size)
        line = None if record is None else curve(record, parameters(network), explorer.size)
        samples = bundled(explorer.labels) if data is None else from_data(data, network, explorer.size)
        view = View(explorer, samples, line)
    server = Server(view, model.expanduser().resolve().name, host=host, port=port)
    if host not in _LOCAL:
        say(f"Everybody who reaches {host} sees this page and may upload pictures to it.")
    if as_json:
        give({"address": server.address, "model": str(model)})
    else:
        results().print(f"{server.address} shows {model}; Ctrl-C ends it", markup=False, soft_wrap=True)
    server.serve_until_told()


def _text(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise OSError(f"{file} must be what nestor profile --out wrote; {error.strerror}. Measure again.") from error
