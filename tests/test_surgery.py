"""Surgery: folding and nesting change nothing at full budget, and keep what they promise below it."""

import copy
from dataclasses import replace

import pytest
import torch
from plain_vit import plain_forward, relative

from nestor.layers.nested import Nest
from nestor.models.plain import HEADS, Plain, PlainSettings, shapes
from nestor.surgery.basis import by_importance, components, rotate
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest, published, shape, with_head


def random_plain(*, embed_norm=False, scale=True, seed=0, **changes) -> Plain:
    values = {
        "width": 24,
        "depth": 2,
        "heads": 3,
        "hidden": 40,
        "patch": 4,
        "grid": (4, 4),
        "prefix": 2,
        "activation": "gelu",
        "eps": 1e-6,
        "interpolation": "bicubic",
        "classes": 3,
        "labels": (),
        "head": "class",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "source": "random",
    } | changes
    settings = PlainSettings(**values)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(size, generator=generator) * (0.3 if len(size) > 1 else 0.7)
        for name, size in shapes(settings, embed_norm=embed_norm, scale=scale).items()
    }
    return Plain(settings=settings, tensors=tensors)


KINDS = [
    *({"head": head} for head in HEADS),
    {"embed_norm": True, "activation": "quick_gelu", "eps": 1e-5},
    {"scale": False, "activation": "gelu_tanh", "prefix": 0, "head": "attention"},
    {"activation": "swiglu", "interpolation": "bicubic_antialias", "head": "class_mean"},
    {"classes": 0},
]


def pictures(count=12, side=16, seed=3):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("side", [16, 24])
def test_folded_and_nested_equal_the_original(kind, side):
    plain = random_plain(**kind)
    images = pictures(3, side)
    tokens, logits = plain_forward(plain, images)
    dense = fold(plain)
    elastic = nest(dense, pictures())
    for network in (dense, elastic):
        output = network(images, budget=1.0)
        assert relative(output.tokens, tokens) < 2e-5
        if logits is not None:
            assert output.logits is not None
            assert relative(output.logits, logits) < 2e-5


@pytest.mark.parametrize("kind", [{"head": "class_mean"}, {"embed_norm": True}, {"activation": "swiglu"}], ids=str)
def test_rotating_and_reordering_change_nothing(kind):
    dense = fold(random_plain(**kind))
    turn = components(dense, pictures())
    torch.testing.assert_close(turn.T @ turn, torch.eye(24, dtype=torch.float64))
    images = pictures(2, seed=5)
    wanted = dense(images).tokens
    for edited in (rotate(dense, turn), by_importance(dense, pictures())):
        assert relative(edited(images).tokens, wanted) < 1e-5
        assert not torch.equal(edited.blocks[0].mlp.outward, dense.blocks[0].mlp.outward)


def test_components_come_by_falling_energy():
    dense = fold(random_plain())
    turned = rotate(dense, components(dense, pictures()))
    again = components(turned, pictures())
    torch.testing.assert_close(again.abs(), torch.eye(24, dtype=torch.float64), atol=1e-2, rtol=0)


def test_the_dense_network_is_not_changed():
    dense = fold(random_plain())
    before = copy.deepcopy(dense.state_dict())
    nest(dense, pictures())
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def cosine(network, images, wanted, budget):
    return torch.cosine_similarity(network(images, budget=budget).tokens, wanted, -1).mean().item()


def test_compensation_helps_on_pictures_it_has_not_seen():
    dense = fold(random_plain(classes=0))
    images, calibration = pictures(16, seed=9), pictures(64, seed=4)
    wanted = dense(images).tokens
    plain, compensated = nest(dense, calibration, compensated=False), nest(dense, calibration)
    for budget in (0.5, 0.65, 0.8):
        assert cosine(compensated, images, wanted, budget) > cosine(plain, images, wanted, budget)


def test_calibration_takes_back_the_mean_error():
    dense = fold(random_plain(classes=0))
    images = pictures(32, side=32)
    elastic = nest(dense, images, nest=shape(24, 40, 3, merge=0.0), budget=0.7)
    output = elastic(images, budget=0.7)
    index = output.routings[0].index.squeeze(-1)
    difference = (output.tokens - dense(images).tokens)[:, 2:]
    for expert in range(elastic.settings.nest.experts - 1):
        torch.testing.assert_close(difference[index == expert].mean(0), torch.zeros(24), atol=1e-4, rtol=0)


def test_shapes():
    assert shape(384, 1536, 6) == Nest(widths=(96, 384), hidden=(384, 1536), heads=(6, 6), own=True, merge=0.5)
    assert shape(384, 1536, 6, (0, 1.0), own=False) == Nest(widths=(0, 384), hidden=(0, 1536), heads=(0, 6))
    assert published(384, 1536, 6) == Nest(widths=(48, 96, 192, 384), hidden=(1536,) * 4, heads=(6,) * 4)


@pytest.mark.parametrize(
    "sizes",
    [
        shape(24, 40, 3, (0, 0.5, 1.0)),
        shape(24, 40, 3, (0.25, 0.5, 1), own=False),
        published(24, 40, 3),
        shape(24, 40, 3, (1.0,)),
    ],
)
def test_any_shape_is_exact_at_full_budget(sizes):
    dense = fold(random_plain())
    assert relative(nest(dense, pictures(), nest=sizes)(pictures(2)).tokens, dense(pictures(2)).tokens) < 2e-5


def test_any_basis_is_exact_at_full_budget_and_the_components_are_better_below():
    dense, images = fold(random_plain(classes=0)), pictures(16, seed=9)
    wanted = dense(images).tokens
    as_it_is = nest(dense, pictures(64), basis=torch.eye(24))
    assert relative(as_it_is(images).tokens, wanted) < 2e-5
    assert cosine(as_it_is, images, wanted, 0.5) < cosine(nest(dense, pictures(64)), images, wanted, 0.5)
    for wrong in (torch.ones(24, 24), torch.eye(23)):
        with pytest.raises(ValueError, match="must be 24 orthonormal columns"):
            nest(dense, pictures(), basis=wrong)


def test_a_fresh_head_keeps_the_network():
    dense = fold(random_plain(classes=0))
    headed = with_head(dense, ["good", "bad"])
    assert headed.settings == replace(dense.settings, classes=2, labels=("good", "bad"), head="class_mean")
    assert torch.equal(headed(pictures(2)).tokens, dense(pictures(2)).tokens)
    assert torch.equal(headed(pictures(2)).logits, torch.zeros(2, 2))


def test_errors_name_rule_value_and_repair():
    dense = fold(random_plain())
    with pytest.raises(ValueError, match="takes a network with one expert; got one with 2"):
        nest(nest(dense, pictures()), pictures())
    with pytest.raises(ValueError, match="last expert must be the whole network, 24 channels"):
        nest(dense, pictures(), nest=Nest(widths=(8, 16), hidden=(8, 40), heads=(3, 3)))
    with pytest.raises(ValueError, match="fractions must end with 1"):
        shape(24, 40, 3, (0.5, 0.9))
    with pytest.raises(ValueError, match=r"has none\. Use 'mean'"):
        with_head(fold(random_plain(prefix=0, head="mean")), ["a", "b"])
    with pytest.raises(ValueError, match="reads class, mean or class_mean"):
        with_head(dense, ["a", "b"], "attention")
