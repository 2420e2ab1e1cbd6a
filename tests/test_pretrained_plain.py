from dataclasses import replace
from typing import Any

import pytest
import torch

from nestor.models.plain import Plain, PlainSettings, shapes

SETTINGS = PlainSettings(
    width=8,
    depth=2,
    heads=2,
    hidden=16,
    patch=4,
    grid=(2, 3),
    prefix=1,
    activation="gelu",
    eps=1e-6,
    interpolation="bicubic",
    classes=3,
    labels=("a", "b", "c"),
    head="class",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    source="test",
)


def tensors(*, embed_norm: bool = False, scale: bool = False) -> dict[str, torch.Tensor]:
    wanted = shapes(SETTINGS, embed_norm=embed_norm, scale=scale)
    return {name: torch.zeros(shape) for name, shape in wanted.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "activation must be one of gelu, gelu_tanh, quick_gelu, swiglu; got 'relu'"),
        ({"interpolation": "linear"}, "interpolation must be one of bicubic, bicubic_antialias; got 'linear'"),
        ({"head": "max"}, "head must be one of class, mean, .*; got 'max'"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"grid": (0, 3)}, r"grid must have at least one row and one column; got \(0, 3\)"),
        ({"heads": 3}, "heads must divide the width 8; got 3"),
        ({"eps": 0.0}, "eps must be positive; got .* eps 0.0"),
        ({"prefix": 0}, r"The head 'class' reads 1 prefix token\(s\); got prefix 0"),
        ({"labels": ("a",)}, "one label a class; got 1 for 3 classes"),
        ({"std": (0.5, 0.0, 0.5)}, "std positive; got"),
        ({"mean": (0.5,)}, "must hold three numbers"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


def test_shapes_follow_the_settings():
    plain = shapes(SETTINGS, embed_norm=False, scale=False)
    assert plain["embed.position"] == (2, 3, 8)
    assert plain["blocks.1.mlp.in.weight"] == (16, 8)
    assert plain["head.weight"] == (3, 8)
    gated = shapes(replace(SETTINGS, activation="swiglu", head="class_mean"), embed_norm=True, scale=True)
    assert gated["blocks.1.mlp.in.weight"] == (32, 8)
    assert gated["blocks.1.mlp.out.weight"] == (8, 16)
    assert gated["head.weight"] == (3, 16)
    scales = {f"blocks.{i}.scale{j}" for i in (0, 1) for j in (1, 2)}
    assert gated.keys() - plain.keys() == {"embed.norm.weight", "embed.norm.bias"} | scales
    assert "head.weight" not in shapes(replace(SETTINGS, classes=0, labels=()), embed_norm=False, scale=False)


@pytest.mark.parametrize("extra", [{}, {"embed_norm": True}, {"scale": True}])
def test_fitting_tensors_are_kept_and_cannot_be_replaced(extra: dict[str, bool]):
    given = tensors(**extra)
    plain = Plain(settings=SETTINGS, tensors=given)
    given.clear()
    assert plain.tensors.keys() == tensors(**extra).keys()
    with pytest.raises(TypeError, match="does not support item assignment"):
        plain.tensors["norm.weight"] = torch.zeros(8)  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.weight": torch.zeros(7)}, r"norm\.weight: expected \(8,\), found \(7,\)"),
        ({"other": torch.zeros(7)}, r"other: expected nothing, found \(7,\)"),
        ({"blocks.0.scale1": torch.zeros(8)}, r"3 do not: .*blocks\.1\.scale2: expected \(8,\), found nothing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes: dict[str, torch.Tensor], message: str):
    with pytest.raises(ValueError, match=message):
        Plain(settings=SETTINGS, tensors=tensors() | changes)
