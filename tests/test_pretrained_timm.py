import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_vit import plain_forward, plain_read, randomise, relative
from safetensors.torch import save_file

from nestor.models.pretrained import read
from nestor.models.pretrained.timm import from_model

TINY: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 7,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
    "mlp_ratio": 2,
}


def build(name: str = "vit_tiny_patch16_224", **changes: Any) -> Any:
    import timm

    model = timm.create_model(name, **(TINY | changes)).eval()
    randomise(model)
    return model


@torch.no_grad()
def check(model: Any, sizes: tuple[tuple[int, int], ...] = ((28, 28),)) -> None:
    plain = from_model(model, model.state_dict(), {}, source="timm:tiny")
    for height, width in sizes:
        images = torch.randn(2, 3, height, width)
        tokens, logits = plain_forward(plain, images)
        if plain.settings.head != "mean_then_norm":
            assert relative(tokens, model.forward_features(images)) < 1e-5
        else:
            # Such a network never applies its norm to the tokens; its own norm of them must agree.
            assert relative(tokens, model.fc_norm(model.forward_features(images))) < 1e-5
        if plain.settings.classes:
            assert logits is not None
            assert relative(logits, model(images)) < 1e-5
        else:
            assert relative(plain_read(plain, images), model(images)) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_classes": 0},
        {"reg_tokens": 3},
        {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
        {"global_pool": "avg"},
        {"global_pool": "token", "fc_norm": False},
        {"class_token": False, "global_pool": "map"},
        {"class_token": False, "global_pool": "map", "num_classes": 0},
        {"init_values": 0.1},
        {"pre_norm": True},
        {"qkv_bias": False, "proj_bias": False},
        {"act_layer": "gelu_tanh"},
        {"act_layer": "quick_gelu"},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()) or "plain",
)
def test_a_vision_transformer_agrees_with_the_original(changes: dict[str, Any]):
    check(build(**changes))


@pytest.mark.parametrize("changes", [{}, {"reg_tokens": 3, "no_embed_class": True}, {"pre_norm": True}])
def test_other_sizes_agree_with_the_original(changes: dict[str, Any]):
    check(build(dynamic_img_size=True, **changes), ((28, 28), (42, 42), (21, 49), (14, 14)))


def test_a_grid_that_is_not_square_agrees():
    model = build(img_size=(21, 35))
    check(model, ((21, 35),))
    assert from_model(model, model.state_dict(), {}, source="").settings.grid == (3, 5)


def test_distilled_deit_averages_two_heads():
    check(build("deit_tiny_distilled_patch16_224"))


def test_a_gated_network_agrees():
    from timm.layers.mlp import SwiGLUPacked

    check(build(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU))


def test_clip_of_timm_keeps_its_eps():
    model = build("vit_base_patch32_clip_224")
    check(model)
    assert from_model(model, model.state_dict(), {}, source="").settings.eps == 1e-5


def save(model: Any, folder: Path, **arguments: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": model.num_classes,
        "model_args": {k: v for k, v in TINY.items() if k != "num_classes"} | arguments,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "label_names": list("abcde")},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return config


@torch.no_grad()
def test_a_folder_in_the_layout_of_timm_agrees(tmp_path: Path):
    model = build(global_pool="avg", class_token=False, num_heads=6)
    save(model, tmp_path, global_pool="avg", class_token=False, num_heads=6)
    plain = read(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    logits = plain_forward(plain, images)[1]
    assert logits is not None
    assert relative(logits, model(images)) < 1e-5
    assert plain.settings.mean == (0.1, 0.2, 0.3)
    assert plain.settings.std == (0.4, 0.5, 0.6)
    assert plain.settings.labels == tuple("abcde")
    assert plain.settings.source == "timm:vit_tiny_patch16_224"


def test_a_folder_whose_weights_do_not_fit_is_refused(tmp_path: Path):
    save(build(depth=3), tmp_path)
    with pytest.raises(ValueError, match=r"unexpected blocks\.2\."):
        read(tmp_path)


def test_a_folder_of_an_unknown_architecture_is_refused(tmp_path: Path):
    config = save(build(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "vit_of_nobody"}))
    with pytest.raises(ValueError, match=r"must be one that timm can build; got 'vit_of_nobody'"):
        read(tmp_path)


def test_a_name_asks_timm_for_pretrained_weights(monkeypatch: pytest.MonkeyPatch):
    import timm

    model = build()
    asked: list[tuple[str, bool]] = []

    def create_model(name: str, pretrained: bool) -> Any:
        asked.append((name, pretrained))
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    plain = read("timm:vit_tiny_patch16_224")
    assert asked == [("vit_tiny_patch16_224", True)]
    assert torch.equal(plain.tensors["norm.weight"], model.norm.weight)
    assert plain.settings.mean == tuple(model.pretrained_cfg["mean"])


def test_a_name_that_timm_cannot_load_is_explained():
    with pytest.raises(ValueError, match="timm must know the network and reach its weights; got 'vit_of_nobody'"):
        read("timm:vit_of_nobody")


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "map"},
        {"pre_norm": True, "norm_layer": "layernorm", "num_classes": 0},
    ],
)
def test_a_bare_file_is_read_with_heads_of_width_64(changes: dict[str, Any], tmp_path: Path):
    from functools import partial

    changes = dict(changes)
    if changes.pop("norm_layer", None):
        changes["norm_layer"] = partial(torch.nn.LayerNorm, eps=1e-5)
    model = build(embed_dim=128, num_heads=2, **changes)
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    plain = read(tmp_path / "bare.safetensors")
    images = torch.randn(1, 3, 28, 28)
    assert plain.settings.heads == 2
    logits = plain_forward(plain, images)[1]
    assert relative(logits if logits is not None else plain_read(plain, images), model(images)) < 1e-5


def test_a_bare_distilled_file_is_read(tmp_path: Path):
    save_file(
        build("deit_tiny_distilled_patch16_224", embed_dim=64, num_heads=1).state_dict(), tmp_path / "d.safetensors"
    )
    settings = read(tmp_path / "d.safetensors").settings
    assert (settings.head, settings.prefix, settings.grid) == ("class_distill", 2, (4, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "heads of width 64, which must divide the width; got 48"),
        (
            {"embed_dim": 64, "num_heads": 1, "img_size": (14, 35)},
            "must have a square grid of positions; got 11 rows for 1",
        ),
    ],
)
def test_a_bare_file_that_cannot_be_guessed_is_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    model = build(**changes)
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "bare.safetensors")


def test_a_bare_file_under_other_names_is_refused(tmp_path: Path):
    save_file({"vit.embeddings.cls_token": torch.zeros(1, 1, 64)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"under timm's names; .* has vit\.embeddings\.cls_token.*config\.json"):
        read(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": True}, r"unexpected blocks\.0\.attn\.q_norm\.weight"),
        ({"patch_size": (7, 14)}, r"Patches must be square; got \(7, 14\)"),
        ({"pos_embed": "none"}, "must have learned positions"),
        ({"act_layer": "relu"}, r"The activation must be one of GELU.*; got ReLU"),
        ({"final_norm": False}, "must have a final norm"),
        ({"class_token": False, "global_pool": "max"}, "The pooling must be one of token, avg, map.*; got 'max'"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "leave out class and register tokens; got 'avg'"),
        ({"global_pool": "map"}, "Attention pooling must .* read patches alone"),
    ],
)
def test_what_a_plain_network_does_not_compute_is_refused(changes: dict[str, Any], message: str):
    model = build(**changes)
    with pytest.raises(ValueError, match=message):
        from_model(model, model.state_dict(), {}, source="timm:odd")


def test_another_kind_of_block_or_network_is_refused():
    import timm
    from timm.models.vision_transformer import ParallelScalingBlock

    with pytest.raises(ValueError, match="made of Block and PatchEmbed; got VisionTransformer, ParallelScalingBlock"):
        from_model(build(block_fn=ParallelScalingBlock), {}, {}, source="timm:odd")
    with pytest.raises(ValueError, match="got ResNet"):
        from_model(timm.create_model("resnet10t"), {}, {}, source="timm:odd")
