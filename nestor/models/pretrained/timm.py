"""Checkpoints in the layout of timm's vision_transformer: by name, as a folder, or as a bare file of weights."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from nestor.models.plain import Plain, PlainSettings, shapes
from nestor.models.pretrained.parts import positions, prefix_tokens
from nestor.rules import Rule, concatenate, translate

_BLOCK = "blocks.{i}"
_CLASSES = ("VisionTransformer", "VisionTransformerDistilled")
_ACTIVATIONS = {
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "SiLU": "swiglu",
}
_POOLS = {"token": "class", "avg": "mean", "map": "attention"}
_HALF = (0.5, 0.5, 0.5)


def from_name(name: str) -> Plain:
    """Describe timm's pretrained network `name`; raises ImportError without timm, ValueError if it is no plain one."""
    timm = _timm()
    try:
        model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        # What timm raises depends on how far it came: no such name, no weights for it, no network, refused by the hub.
        raise ValueError(
            f"timm must know the network and reach its weights; got {name!r}: {error}. "
            "Check the name and the connection, or give a folder with config.json and model.safetensors."
        ) from error
    return from_model(model, model.state_dict(), model.pretrained_cfg or {}, source=f"timm:{name}")


def from_folder(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Plain:
    """Describe a folder in timm's hub layout; timm builds the named architecture (without memory) to say what it is.

    Raises ImportError without timm, ValueError for an unknown or unsupported architecture or weights that do not fit.
    """
    timm = _timm()
    name = config["architecture"]
    arguments = dict(config.get("model_args") or {})
    for key in ("num_classes", "global_pool"):
        if config.get(key) is not None:
            arguments.setdefault(key, config[key])
    try:
        model = timm.create_model(name, pretrained=False, device="meta", **arguments)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"The architecture must be one that timm can build; got {name!r} with {arguments}: {error}"
        ) from error
    card = dict(config.get("pretrained_cfg") or config)
    card.setdefault("label_names", config.get("label_names"))
    return from_model(model, tensors, card, source=f"timm:{name}")


def from_model(model: Any, tensors: Mapping[str, Tensor], card: Mapping[str, Any], *, source: str) -> Plain:
    """Describe `tensors` as the weights of timm's `model`, of which only the structure is read.

    Raises ValueError where the network computes something that a plain vision transformer does not.
    """
    parts = [type(model), *map(type, getattr(model, "blocks", ())), type(getattr(model, "patch_embed", None))]
    kinds = list(dict.fromkeys(part.__name__ for part in parts))
    if kinds[0] not in _CLASSES or kinds[1:] != ["Block", "PatchEmbed"]:
        raise ValueError(
            f"{source} must be a {' or '.join(_CLASSES)} made of Block and PatchEmbed; got {', '.join(kinds)}. "
            "Choose another network."
        )
    block = model.blocks[0]
    patch = tuple(model.patch_embed.patch_size)
    if patch[0] != patch[1]:
        raise ValueError(f"Patches must be square; got {patch} in {source}.")
    if model.pos_embed is None:
        raise ValueError(f"{source} must have learned positions; it has none.")
    gated = type(block.mlp).__name__ in ("GluMlp", "SwiGLUPacked")
    act = "GELUTanh" if getattr(block.mlp.act, "approximate", "") == "tanh" else type(block.mlp.act).__name__
    activation = _ACTIVATIONS.get(act)
    if activation is None or gated != (activation == "swiglu") or getattr(block.mlp, "gate_last", False):
        raise ValueError(f"The activation must be one of {', '.join(_ACTIVATIONS)} (gated); got {act} in {source}.")
    distilled = hasattr(model, "dist_token")
    labels = card.get("label_names")
    names = tuple(str(label) for label in labels) if isinstance(labels, list | tuple) else ()
    settings = PlainSettings(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        hidden=block.mlp.fc2.in_features,
        patch=patch[0],
        grid=tuple(model.patch_embed.grid_size),
        prefix=model.num_prefix_tokens,
        activation=activation,
        eps=block.norm1.eps,
        interpolation="bicubic_antialias",
        classes=model.num_classes,
        labels=names if len(names) == model.num_classes else (),
        head="class_distill" if distilled else _pool(model, source),
        mean=tuple(card.get("mean") or _HALF),
        std=tuple(card.get("std") or _HALF),
        source=source,
    )
    return _plain(settings, tensors, covered=0 if model.no_embed_class else settings.prefix)


def from_tensors(tensors: Mapping[str, Tensor], *, source: str) -> Plain:
    """Describe bare weights: sizes from their shapes, the rest by timm's habits.

    Assumed, because the weights do not say it: heads of width 64, exact GELU, a norm's eps of 1e-6 (1e-5 after a norm
    on the embedding, as for CLIP), pictures normalised to [-1, 1], a square grid of patches (positions of the class and
    register tokens are there when what remains without them is a square number), and a head that reads the class token
    unless pooling weights or `fc_norm` say otherwise. Raises ValueError when these are not timm's names, 64 does not
    divide the width, or no square grid fits.
    """
    embed, table, hidden = (tensors.get(n) for n in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc2.weight"))
    if embed is None or table is None or hidden is None or embed.ndim != 4 or table.ndim != 3 or hidden.ndim != 2:
        raise ValueError(
            f"A bare file must hold a vision transformer under timm's names; {source} has "
            f"{', '.join(list(tensors)[:5]) or 'no tensors'}. Give the folder with its config.json instead."
        )
    width = embed.shape[0]
    if width % 64:
        raise ValueError(
            f"A bare file is read with heads of width 64, which must divide the width; got {width} in {source}. "
            "Give a folder with config.json instead."
        )
    tokens = [tensors[n] for n in ("cls_token", "dist_token", "reg_token") if n in tensors]
    prefix = sum(token.shape[-2] for token in tokens)
    side, covered = _grid(table.shape[1], prefix, source)
    depth = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("blocks.") and n.split(".")[1].isdigit())
    weight = tensors.get("head.weight")
    settings = PlainSettings(
        width=width,
        depth=depth,
        heads=width // 64,
        hidden=hidden.shape[1],
        patch=embed.shape[-1],
        grid=(side, side),
        prefix=prefix,
        activation="gelu",
        eps=1e-5 if "norm_pre.weight" in tensors else 1e-6,
        interpolation="bicubic_antialias",
        classes=0 if weight is None else weight.shape[0],
        labels=(),
        head=_guess_head(tensors),
        mean=_HALF,
        std=_HALF,
        source=source,
    )
    return _plain(settings, tensors, covered=covered)


def _plain(settings: PlainSettings, tensors: Mapping[str, Tensor], *, covered: int) -> Plain:
    expected = shapes(settings, embed_norm="norm_pre.weight" in tensors, scale="blocks.0.ls1.gamma" in tensors)
    translated = translate(_rules(settings, tensors, covered), tensors, expected, source=settings.source)
    return Plain(settings=settings, tensors=translated)


def _rules(settings: PlainSettings, names: Iterable[str], covered: int) -> tuple[Rule, ...]:
    tokens = [name for name in ("cls_token", "dist_token", "reg_token") if name in set(names)]
    pool = "attn_pool."
    rules = [
        prefix_tokens(*tokens) if tokens else Rule("embed.prefix"),
        *positions("pos_embed", settings, covered=covered),
        Rule("embed.{kind}", "patch_embed.proj.{kind}"),
        Rule("embed.norm.{kind}", "norm_pre.{kind}"),
        Rule(f"{_BLOCK}.norm1.{{kind}}", f"{_BLOCK}.norm1.{{kind}}"),
        Rule(f"{_BLOCK}.norm2.{{kind}}", f"{_BLOCK}.norm2.{{kind}}"),
        Rule(f"{_BLOCK}.attention.qkv.{{kind}}", f"{_BLOCK}.attn.qkv.{{kind}}"),
        Rule(f"{_BLOCK}.attention.out.{{kind}}", f"{_BLOCK}.attn.proj.{{kind}}"),
        Rule(f"{_BLOCK}.mlp.in.{{kind}}", f"{_BLOCK}.mlp.fc1.{{kind}}"),
        Rule(f"{_BLOCK}.mlp.out.{{kind}}", f"{_BLOCK}.mlp.fc2.{{kind}}"),
        Rule(f"{_BLOCK}.scale1", f"{_BLOCK}.ls1.gamma"),
        Rule(f"{_BLOCK}.scale2", f"{_BLOCK}.ls2.gamma"),
        Rule("norm.{kind}", "fc_norm.{kind}" if "fc_norm.weight" in set(names) else "norm.{kind}"),
        Rule("pool.query", f"{pool}latent", lambda latent: latent.reshape(-1)),
        Rule("pool.attention.qkv.{kind}", (f"{pool}q.{{kind}}", f"{pool}kv.{{kind}}"), _query_first),
        Rule("pool.attention.out.{kind}", f"{pool}proj.{{kind}}"),
        Rule("pool.norm.{kind}", f"{pool}norm.{{kind}}"),
        Rule("pool.mlp.in.{kind}", f"{pool}mlp.fc1.{{kind}}"),
        Rule("pool.mlp.out.{kind}", f"{pool}mlp.fc2.{{kind}}"),
        Rule("head.{kind}", "head.{kind}"),
        Rule("head_distill.{kind}", "head_dist.{kind}"),
    ]
    # timm lets a network do without these biases; the first block tells whether it does.
    optional = (
        ("embed.bias", "patch_embed.proj.bias"),
        ("blocks.{i}.attention.qkv.bias", "blocks.0.attn.qkv.bias"),
        ("blocks.{i}.attention.out.bias", "blocks.0.attn.proj.bias"),
        ("blocks.{i}.mlp.in.bias", "blocks.0.mlp.fc1.bias"),
        ("blocks.{i}.mlp.out.bias", "blocks.0.mlp.fc2.bias"),
    )
    return (*rules, *(Rule(target) for target, witness in optional if witness not in set(names)))


def _query_first(query: Tensor, pair: Tensor) -> Tensor:
    return concatenate(query, *pair.chunk(2))


def _pool(model: Any, source: str) -> str:
    """What the head of timm's `model` reads."""
    late = type(model.fc_norm).__name__ != "Identity"
    early = type(model.norm).__name__ != "Identity"
    pool = model.global_pool
    if not late and not early:
        raise ValueError(f"{source} must have a final norm; it has none.")
    if not pool and not model.num_classes:
        return "class" if model.has_class_token else "mean"
    if pool not in _POOLS or (model.pool_include_prefix and model.num_prefix_tokens and pool != "token"):
        raise ValueError(
            f"The pooling must be one of {', '.join(_POOLS)} and leave out class and register tokens; "
            f"got {pool!r} in {source}."
        )
    if pool == "map":
        if late or model.num_prefix_tokens:
            raise ValueError(
                f"Attention pooling must follow the final norm and read patches alone; not so in {source}."
            )
        return "attention"
    # The norm of one token is the same before and after it is picked; the norm of a mean is not.
    return "mean_then_norm" if pool == "avg" and late else _POOLS[pool]


def _guess_head(names: Iterable[str]) -> str:
    present = set(names)
    if "attn_pool.latent" in present:
        return "attention"
    if "dist_token" in present and "head_dist.weight" in present:
        return "class_distill"
    if "fc_norm.weight" in present:
        return "mean_then_norm"
    return "class" if "cls_token" in present else "mean"


def _grid(rows: int, prefix: int, source: str) -> tuple[int, int]:
    """Side of the grid, and how many prefix tokens the table of positions covers: all or none."""
    for covered in (prefix, 0):
        side = math.isqrt(max(rows - covered, 0))
        if side and side * side == rows - covered:
            return side, covered
    raise ValueError(
        f"A bare file must have a square grid of positions; got {rows} rows for {prefix} tokens in {source}."
    )


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError("Reading timm's networks needs timm. Install it: pip install timm") from error
    return timm
