"""How much of the saved multiply-accumulates ONNX Runtime turns into saved time: dense and nested take turns.

    python benchmarks/export_speed.py --threads 2 --out export_speed.json

The weights are random, since time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nestor.api import export
from nestor.measure.clock import machine, race
from nestor.models.vit import ViT, ViTSettings
from nestor.surgery.nest import published, shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.layers.nested import Nest

SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12)}
"""Width, depth and heads."""


def main() -> None:
    """Measure and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="s", help="ViT-Ti, ViT-S or ViT-B, patches of 16 pixels")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the numbers; by default they are printed")
    asked = parser.parse_args()
    torch.manual_seed(0)
    text = json.dumps(measured(asked), indent=2)
    if asked.out is None:
        print(text)
    else:
        asked.out.write_text(text + "\n", encoding="utf-8")


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every network and batch, and what the nested ones gain against the dense one."""
    import onnxruntime

    width, depth, heads = SIZES[asked.model]
    sizes = (width, 4 * width, heads)
    shapes = {"dense": shape(*sizes, (1.0,)), "default": shape(*sizes), "published": published(*sizes)}
    networks = {name: random(nest, depth, asked.size) for name, nest in shapes.items()}
    budgets = {name: 1.0 if name == "dense" else asked.budget for name in networks}
    count = (asked.size // 16) ** 2
    macs = {name: net.macs(net.plan(count, budgets[name])) for name, net in networks.items()}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            name: opened(export(net, Path(folder, f"{name}.onnx"), budgets=(budgets[name],))[0], asked.threads)
            for name, net in networks.items()
        }
        for batch in asked.batches:
            images = torch.randn(batch, 3, asked.size, asked.size).numpy()
            calls = {name: bound(session, images) for name, session in sessions.items()}
            times = race(calls, rounds=asked.rounds, what=f"Batch {batch}")
            for name, timing in times.items():
                speedup = times["dense"].median_ms / timing.median_ms
                saved = macs["dense"] / macs[name]
                results.append(
                    {
                        "batch": batch,
                        "network": name,
                        "budget": budgets[name],
                        "macs": macs[name],
                        "median_ms": timing.median_ms,
                        "quartiles_ms": [timing.low_ms, timing.high_ms],
                        "speedup": speedup,
                        "mac_reduction": saved,
                        "efficiency": speedup / saved,
                    }
                )
    return {
        "machine": machine() | {"onnxruntime": onnxruntime.__version__, "threads": str(asked.threads)},
        "model": asked.model,
        "size": asked.size,
        "precision": "float32",
        "rounds": asked.rounds,
        "results": results,
    }


def random(nest: Nest, depth: int, size: int) -> ViT:
    """A network of this shape for a thousand classes."""
    scores = ("loss",) if nest.experts > 1 else ()
    settings = ViTSettings(
        nest=nest, depth=depth, patch=16, grid=(size // 16, size // 16), nominal=size, classes=1000, scores=scores
    )
    return ViT(settings).eval()


def opened(file: Path, threads: int) -> Any:
    """A session on the CPU with this many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def bound(session: Any, images: Any) -> Callable[[], Any]:
    """One call of a session."""
    return lambda: session.run(None, {"images": images})


if __name__ == "__main__":
    main()
