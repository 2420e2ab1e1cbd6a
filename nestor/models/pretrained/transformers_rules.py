"""How the weights of transformers' vision families are called, as rules."""

from typing import Literal

from nestor.models.plain import PlainSettings
from nestor.models.pretrained.parts import positions, prefix_tokens
from nestor.rules import Rule, concatenate

Layout = Literal["vit", "dinov2", "clip", "siglip"]

_TEXT = ("text_model.*", "text_projection.*", "visual_projection.*", "logit_scale", "logit_bias")
# What may be left over: parts used in pre-training only, constants, and the other tower of a pair.
IGNORED: dict[Layout, tuple[str, ...]] = {
    "vit": ("{prefix}embeddings.mask_token", "{prefix}pooler.*", "decoder.*"),
    "dinov2": ("{prefix}embeddings.mask_token",),
    "clip": ("{prefix}embeddings.position_ids", *_TEXT),
    "siglip": ("{prefix}embeddings.position_ids", *_TEXT),
}


def rules_for(
    layout: Layout, prefix: str, settings: PlainSettings, classifiers: tuple[str, ...], *, qkv_bias: bool
) -> tuple[Rule, ...]:
    """Rules for one layout whose names start with `prefix`, and for its classifiers; newer spellings come second."""
    body = {"vit": _vit, "dinov2": _dinov2, "clip": _clip, "siglip": _siglip}[layout](prefix, settings)
    heads = tuple(
        Rule(f"{name}.{{kind}}", f"{source}.{{kind}}")
        for name, source in zip(("head", "head_distill"), classifiers, strict=False)
    )
    absent = () if qkv_bias else (Rule("blocks.{i}.attention.qkv.bias"),)
    return (*body, *heads, *absent)


def _vit(prefix: str, settings: PlainSettings) -> tuple[Rule, ...]:
    old, new = f"{prefix}encoder.layer.{{i}}", f"{prefix}layers.{{i}}"
    tokens = ("cls_token", "distillation_token")[: settings.prefix]
    return (
        *_embedding(f"{prefix}embeddings.", tokens, settings, covered=settings.prefix),
        Rule("blocks.{i}.norm1.{kind}", f"{old}.layernorm_before.{{kind}}"),
        Rule("blocks.{i}.norm1.{kind}", f"{new}.layernorm_before.{{kind}}"),
        Rule("blocks.{i}.norm2.{kind}", f"{old}.layernorm_after.{{kind}}"),
        Rule("blocks.{i}.norm2.{kind}", f"{new}.layernorm_after.{{kind}}"),
        *_bert_attention(old),
        *_attention(f"{new}.attention", "o_proj"),
        Rule("blocks.{i}.mlp.in.{kind}", f"{old}.intermediate.dense.{{kind}}"),
        Rule("blocks.{i}.mlp.out.{kind}", f"{old}.output.dense.{{kind}}"),
        *_mlp(new),
        Rule("norm.{kind}", f"{prefix}layernorm.{{kind}}"),
    )


def _dinov2(prefix: str, settings: PlainSettings) -> tuple[Rule, ...]:
    block = f"{prefix}encoder.layer.{{i}}"
    tokens = ("cls_token", "register_tokens") if settings.prefix > 1 else ("cls_token",)
    return (
        # Registers have no positions.
        *_embedding(f"{prefix}embeddings.", tokens, settings, covered=1),
        Rule("blocks.{i}.norm1.{kind}", f"{block}.norm1.{{kind}}"),
        Rule("blocks.{i}.norm2.{kind}", f"{block}.norm2.{{kind}}"),
        *_bert_attention(block),
        *_attention(f"{block}.attention", "o_proj"),
        *_mlp(block),
        Rule("blocks.{i}.mlp.in.{kind}", f"{block}.mlp.weights_in.{{kind}}"),
        Rule("blocks.{i}.mlp.out.{kind}", f"{block}.mlp.weights_out.{{kind}}"),
        Rule(
            "blocks.{i}.mlp.in.{kind}",
            (f"{block}.mlp.gate_proj.{{kind}}", f"{block}.mlp.up_proj.{{kind}}"),
            concatenate,
        ),
        Rule("blocks.{i}.mlp.out.{kind}", f"{block}.mlp.down_proj.{{kind}}"),
        Rule("blocks.{i}.scale1", f"{block}.layer_scale1.lambda1"),
        Rule("blocks.{i}.scale2", f"{block}.layer_scale2.lambda1"),
        Rule("norm.{kind}", f"{prefix}layernorm.{{kind}}"),
    )


def _clip(prefix: str, settings: PlainSettings) -> tuple[Rule, ...]:
    embeddings = f"{prefix}embeddings."
    return (
        Rule("embed.bias"),
        prefix_tokens(f"{embeddings}class_embedding"),
        # The checkpoints themselves spell it so.
        Rule("embed.norm.{kind}", f"{prefix}pre_layrnorm.{{kind}}"),
        *_tower(prefix, settings),
    )


def _siglip(prefix: str, settings: PlainSettings) -> tuple[Rule, ...]:
    head = f"{prefix}head."
    return (
        Rule("embed.bias", f"{prefix}embeddings.patch_embedding.bias"),
        Rule("embed.prefix"),
        *_tower(prefix, settings),
        Rule("pool.query", f"{head}probe", lambda probe: probe.reshape(-1)),
        Rule("pool.attention.qkv.{kind}", f"{head}attention.in_proj_{{kind}}"),
        Rule("pool.attention.out.{kind}", f"{head}attention.out_proj.{{kind}}"),
        Rule("pool.norm.{kind}", f"{head}layernorm.{{kind}}"),
        Rule("pool.mlp.in.{kind}", f"{head}mlp.fc1.{{kind}}"),
        Rule("pool.mlp.out.{kind}", f"{head}mlp.fc2.{{kind}}"),
    )


def _tower(prefix: str, settings: PlainSettings) -> tuple[Rule, ...]:
    block, embeddings = f"{prefix}encoder.layers.{{i}}", f"{prefix}embeddings."
    return (
        Rule("embed.weight", f"{embeddings}patch_embedding.weight"),
        *positions(f"{embeddings}position_embedding.weight", settings, covered=settings.prefix),
        Rule("blocks.{i}.norm1.{kind}", f"{block}.layer_norm1.{{kind}}"),
        Rule("blocks.{i}.norm2.{kind}", f"{block}.layer_norm2.{{kind}}"),
        *_attention(f"{block}.self_attn", "out_proj"),
        *_mlp(block),
        Rule("norm.{kind}", f"{prefix}post_layernorm.{{kind}}"),
    )


def _embedding(place: str, tokens: tuple[str, ...], settings: PlainSettings, *, covered: int) -> tuple[Rule, ...]:
    return (
        Rule("embed.{kind}", f"{place}patch_embeddings.projection.{{kind}}"),
        prefix_tokens(*(f"{place}{token}" for token in tokens)),
        *positions(f"{place}position_embeddings", settings, covered=covered),
    )


def _bert_attention(block: str) -> tuple[Rule, ...]:
    inner = f"{block}.attention.attention"
    return (
        Rule(
            "blocks.{i}.attention.qkv.{kind}",
            (f"{inner}.query.{{kind}}", f"{inner}.key.{{kind}}", f"{inner}.value.{{kind}}"),
            concatenate,
        ),
        Rule("blocks.{i}.attention.out.{kind}", f"{block}.attention.output.dense.{{kind}}"),
    )


def _attention(attention: str, out: str) -> tuple[Rule, ...]:
    return (
        Rule(
            "blocks.{i}.attention.qkv.{kind}",
            (f"{attention}.q_proj.{{kind}}", f"{attention}.k_proj.{{kind}}", f"{attention}.v_proj.{{kind}}"),
            concatenate,
        ),
        Rule("blocks.{i}.attention.out.{kind}", f"{attention}.{out}.{{kind}}"),
    )


def _mlp(block: str) -> tuple[Rule, ...]:
    return (
        Rule("blocks.{i}.mlp.in.{kind}", f"{block}.mlp.fc1.{{kind}}"),
        Rule("blocks.{i}.mlp.out.{kind}", f"{block}.mlp.fc2.{{kind}}"),
    )
