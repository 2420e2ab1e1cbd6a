"""Checkpoints in the layout of transformers: ViT, DeiT, DINOv2, and the vision towers of CLIP and SigLIP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from nestor.models.plain import Plain, PlainSettings, shapes
from nestor.models.pretrained.transformers_rules import IGNORED, Layout, rules_for
from nestor.rules import translate

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the model types of one architecture have in common.

    `defaults` are the values that transformers leaves out of a config because they are its own defaults.
    """

    layout: Layout
    prefixes: tuple[str, ...]
    defaults: Mapping[str, Any]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    interpolation: str = "bicubic"
    classifier: str = "class"


_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "num_channels": 3}
_VIT = _SIZES | {"intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
_DINO = _SIZES | {"mlp_ratio": 4, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
_CLIP = _VIT | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = _VIT | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True}

_VIT_FAMILY = Family(layout="vit", prefixes=("vit.",), defaults=_VIT, normalisation=HALF)
_CLIP_FAMILY = Family(layout="clip", prefixes=("vision_model.",), defaults=_CLIP, normalisation=CLIP)
_SIGLIP_FAMILY = Family(
    layout="siglip", prefixes=("vision_model.",), defaults=_SIGLIP, normalisation=HALF, classifier="mean"
)
FAMILIES: dict[str, Family] = {
    "vit": _VIT_FAMILY,
    "deit": Family(layout="vit", prefixes=("deit.",), defaults=_VIT, normalisation=IMAGENET),
    "dinov2": Family(
        layout="dinov2",
        prefixes=("dinov2.", "backbone."),
        defaults=_DINO,
        normalisation=IMAGENET,
        classifier="class_mean",
    ),
    "dinov2_with_registers": Family(
        layout="dinov2",
        prefixes=("dinov2_with_registers.",),
        defaults=_DINO | {"num_register_tokens": 4},
        normalisation=IMAGENET,
        interpolation="bicubic_antialias",
        classifier="class_mean",
    ),
    "clip": _CLIP_FAMILY,
    "clip_vision_model": _CLIP_FAMILY,
    "siglip": _SIGLIP_FAMILY,
    "siglip_vision_model": _SIGLIP_FAMILY,
}


def from_transformers(
    config: Mapping[str, Any], processor: Mapping[str, Any], tensors: Mapping[str, Tensor], *, source: str = ""
) -> Plain:
    """Describe a checkpoint of transformers, given its config.json and (possibly empty) picture processor.

    `source` is what the settings will say of the origin; by default `transformers:` and the model type.

    CLIP applies its last norm to the class token only; here, as for every source, all tokens pass through it. Its
    projection into the space shared with texts is left out, and so is SigLIP's pooling where a classifier replaces it.
    Raises ValueError for an unknown model type, an unsupported setting, or weights that do not fit the config.
    """
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}; got {kind!r}. Convert the model to one.")
    tower = config.get("vision_config") if kind in ("clip", "siglip") else config
    given = {name: value for name, value in (tower or {}).items() if value is not None}
    values = {**family.defaults, **given}
    prefix = next((p for p in family.prefixes if any(name.startswith(p) for name in tensors)), "")
    classifiers = _classifiers(config, tensors)
    if family.layout == "clip" and classifiers:
        raise ValueError(
            "A CLIP classifier must not be present: it reads tokens that no norm has touched. "
            "Save the tower alone, model.vision_model.save_pretrained(folder), and fit a new head."
        )
    settings = _settings(family, values, _tokens(family, values, prefix, tensors), config, processor, tensors)
    settings = replace(settings, source=source or f"transformers:{kind}")
    scale = family.layout == "dinov2"
    expected = shapes(settings, embed_norm=family.layout == "clip", scale=scale)
    rules = rules_for(family.layout, prefix, settings, classifiers, qkv_bias=bool(values.get("qkv_bias", True)))
    ignore = [pattern.format(prefix=prefix) for pattern in IGNORED[family.layout]]
    if family.layout == "siglip" and settings.head != "attention":
        ignore.append(f"{prefix}head.*")
    return Plain(settings=settings, tensors=translate(rules, tensors, expected, ignore=ignore, source=settings.source))


def _classifiers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    architecture = " ".join(config.get("architectures") or ())
    pair = ("cls_classifier", "distillation_classifier")
    if "WithTeacher" in architecture or any(name.startswith(pair) for name in tensors):
        return pair
    # A config that promises a classifier makes its absence an error, unless it promises one of no classes.
    promised = "ForImageClassification" in architecture and config.get("id2label") != {}
    return ("classifier",) if promised or any(name.startswith("classifier.") for name in tensors) else ()


def _tokens(family: Family, values: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]) -> int:
    if family.layout == "siglip":
        return 0
    distilled = f"{prefix}embeddings.distillation_token" in tensors
    return 1 + int(values.get("num_register_tokens", 0)) + distilled


def _settings(
    family: Family,
    values: Mapping[str, Any],
    prefix: int,
    config: Mapping[str, Any],
    processor: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> PlainSettings:
    patch_rows, patch_columns = _pair(values["patch_size"])
    rows, columns = _pair(values["image_size"])
    if patch_rows != patch_columns:
        raise ValueError(f"Patches must be square; got patch_size {values['patch_size']}. Use another checkpoint.")
    if values["num_channels"] != 3:
        raise ValueError(f"Pictures must have 3 channels; got num_channels {values['num_channels']}.")
    width = values["hidden_size"]
    gated = bool(values.get("use_swiglu_ffn"))
    activation = "swiglu" if gated else _ACTIVATIONS.get(values["hidden_act"])
    if activation is None:
        raise ValueError(f"hidden_act must be one of {', '.join(_ACTIVATIONS)}; got {values['hidden_act']!r}.")
    hidden = values["intermediate_size"] if "intermediate_size" in values else int(width * values["mlp_ratio"])
    if gated:
        # DINOv2 gives a gated layer two thirds of the hidden units, rounded up to a multiple of eight.
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    classifiers = _classifiers(config, tensors)
    labels = _labels(config)
    weight = tensors.get(f"{classifiers[0]}.weight") if classifiers else None
    classes = weight.shape[0] if weight is not None and weight.ndim else len(config.get("id2label") or (0, 1))
    classes = classes if classifiers else 0
    if labels is not None and classifiers and len(labels) != classes:
        raise ValueError(f"id2label must name each class; got {len(labels)} names for {classes} classes.")
    mean, std = _normalisation(processor, family)
    return PlainSettings(
        width=width,
        depth=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        hidden=hidden,
        patch=patch_rows,
        grid=(rows // patch_rows, columns // patch_columns),
        prefix=prefix,
        activation=activation,
        eps=values["layer_norm_eps"],
        interpolation=family.interpolation,
        classes=classes,
        labels=_named(labels) if classes else (),
        head=_head(family, classifiers, bool(values.get("vision_use_head"))),
        mean=mean,
        std=std,
        source="transformers",
    )


def _head(family: Family, classifiers: tuple[str, ...], pooled: bool) -> str:
    if len(classifiers) == 2:
        return "class_distill"
    if classifiers:
        return family.classifier
    if family.layout == "siglip":
        return "attention" if pooled else "mean"
    return "class"


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("id2label")
    if not isinstance(names, dict):
        return None
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _named(labels: tuple[str, ...] | None) -> tuple[str, ...]:
    # transformers invents LABEL_0, LABEL_1, ... where nobody gave names.
    invented = labels is None or all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    return () if labels is None or invented else labels


def _normalisation(processor: Mapping[str, Any], family: Family) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if processor.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = family.normalisation
    return tuple(processor.get("image_mean") or mean), tuple(processor.get("image_std") or std)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    rows, columns = value
    return rows, columns
