"""Rows that are moved whole: the same numbers from quicker operators."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nestor.ops.tokens import match
from nestor.programs.openvino import core
from nestor.programs.rows import quicken

if TYPE_CHECKING:
    from collections.abc import Callable

openvino = pytest.importorskip("openvino")


class Plain(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def made(function: Callable[..., Tensor], *tensors: Tensor) -> Any:
    """The function as a model of OpenVINO, for any number of items."""
    items = torch.export.Dim("items", min=1)
    shapes = (tuple({0: items} for _ in tensors),)
    with warnings.catch_warnings():
        # Of what its converter meets on the way.
        warnings.simplefilter("ignore")
        model = openvino.convert_model(torch.export.export(Plain(function), tensors, dynamic_shapes=shapes))
    model.reshape({place: [-1, *tensor.shape[1:]] for place, tensor in zip(model.inputs, tensors, strict=True)})
    return model


def kinds(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def given(model: Any, *tensors: Tensor) -> Tensor:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = core().compile_model(model, "CPU", settings)([tensor.numpy() for tensor in tensors])
    return torch.from_numpy(np.array(found[0]))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def places(items: int, rows: int, among: int) -> Tensor:
    return torch.randint(among, (items, rows), generator=torch.Generator().manual_seed(1))


def gathered(rows: Tensor, place: Tensor) -> Tensor:
    return rows.gather(1, place.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def summed(rows: Tensor, place: Tensor) -> Tensor:
    return rows.new_zeros(rows.shape[0], 4, rows.shape[-1]).scatter_add(1, place.unsqueeze(-1).expand_as(rows), rows)


def merged(rows: Tensor) -> Tensor:
    step = match(rows, 3, 1)
    return step.unmerge(step.merge(rows, torch.ones_like(rows[..., :1]))[0])


@pytest.mark.parametrize("items", [1, 5])
def test_rows_are_gathered_whole(items: int):
    rows, place = drawn(items, 7, 6), places(items, 9, 7)
    model = made(gathered, drawn(2, 7, 6), places(2, 9, 7))
    quicken(model)
    assert "GatherElements" not in kinds(model)
    assert torch.equal(given(model, rows, place), gathered(rows, place))


@pytest.mark.parametrize("items", [1, 5])
def test_rows_are_summed_by_a_product(items: int):
    rows, place = drawn(items, 9, 6), places(items, 9, 4)
    model = made(summed, drawn(2, 9, 6), places(2, 9, 4))
    quicken(model)
    assert "ScatterElementsUpdate" not in kinds(model)
    torch.testing.assert_close(given(model, rows, place), summed(rows, place))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_of_equals_the_first_comes_first(descending: bool, whole: bool):
    def order(numbers: Tensor) -> Tensor:
        return numbers.argsort(dim=1, descending=descending, stable=True)

    numbers = places(3, 50, 4)
    numbers = numbers if whole else numbers.float()
    model = made(order, numbers)
    quicken(model)
    assert "TopK" not in kinds(model)
    assert torch.equal(given(model, numbers), order(numbers))


def test_merged_tokens_are_the_same():
    rows = drawn(3, 12, 8)
    model = made(merged, rows)
    quicken(model)
    torch.testing.assert_close(given(model, rows), merged(rows))


def test_what_is_not_whole_rows_is_left_alone():
    def few(rows: Tensor) -> Tensor:
        """The largest, their places forgotten."""
        return rows.topk(3, dim=1).values

    def each(rows: Tensor, place: Tensor) -> Tensor:
        """Every number of a row from elsewhere."""
        return rows.gather(1, place.unsqueeze(-1) + torch.arange(3))

    def onto(rows: Tensor, place: Tensor) -> Tensor:
        """A sum that does not begin with zero."""
        return rows.scatter_add(1, place.unsqueeze(-1).expand_as(rows), rows)

    cases = [
        (few, (drawn(2, 9),)),
        (each, (drawn(2, 9, 3), places(2, 9, 6))),
        (onto, (drawn(2, 9, 3), places(2, 9, 9))),
    ]
    for function, tensors in cases:
        model = made(function, *tensors)
        before = kinds(model)
        quicken(model)
        assert kinds(model) == before
        torch.testing.assert_close(given(model, *tensors), function(*tensors))
