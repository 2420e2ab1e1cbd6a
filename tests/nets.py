"""Small networks with random weights, and a direct forward pass to hold the fast one against."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.layers.nested import Nest
from nestor.models.vit import ViT, ViTSettings
from nestor.ops.linear import ACTIVATIONS

NESTS = {
    "dense": Nest(widths=(24,), hidden=(40,), heads=(3,)),
    "published": Nest(widths=(3, 6, 12, 24), hidden=(40,) * 4, heads=(3,) * 4),
    "default": Nest(widths=(6, 12, 18, 24), hidden=(10, 20, 30, 40), heads=(3,) * 4),
    "heads": Nest(widths=(8, 16, 24), hidden=(20, 30, 40), heads=(1, 2, 3)),
    "skip": Nest(widths=(0, 12, 24), hidden=(0, 20, 40), heads=(0, 3, 3)),
    "own": Nest(widths=(6, 12, 24), hidden=(10, 20, 40), heads=(3, 3, 3), own=True),
    "own skip": Nest(widths=(0, 12, 24), hidden=(0, 20, 40), heads=(0, 1, 3), own=True),
    "depth": Nest(widths=(0, 24), hidden=(0, 40), heads=(0, 3)),
}


def small(name: str = "default", seed: int = 0, **changes) -> ViT:
    """A network of width 24 and depth 2 on 4-pixel patches, every parameter random, alpha 0.3."""
    nest = NESTS[name]
    kinds = {"scores": ("trailing", "linear") if nest.experts > 1 else (), "classes": 3, "head": "class_mean"} | changes
    torch.manual_seed(seed)
    model = ViT(ViTSettings(nest=nest, depth=2, patch=4, grid=(4, 4), nominal=16, **kinds))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim:
                parameter.normal_(std=0.5 / max(1, parameter.shape[-1]) ** 0.5)
            elif key.endswith("alpha"):
                parameter.fill_(0.3)
    return model


def naive_tokens(model: ViT, images: Tensor, index: Tensor) -> Tensor:
    """(B, T, D): every expert computed for every token and picked by mask; nothing sorted, nothing sliced early."""
    s = model.settings
    nest, D, heads = s.nest, s.nest.widths[-1], s.nest.heads[-1]
    each, last = D // heads, nest.experts - 1
    x = model.embed(images)
    B, T, _ = x.shape
    expert = torch.cat([torch.full((B, s.prefix), last), index], 1)
    gate = torch.zeros(B, T, 1)
    if model.router is not None:
        logits = model.router.score(x[:, s.prefix :], None)
        chosen = logits.softmax(-1).gather(-1, index.unsqueeze(-1))
        gate = torch.cat([torch.zeros(B, s.prefix, 1), chosen], 1)
    alive = torch.tensor(nest.widths)[expert] > 0
    channel = torch.arange(D)
    mine = [(expert == j).unsqueeze(-1) for j in range(nest.experts)]

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + s.eps).sqrt()

    for block in model.blocks:
        attention, mlp = block.attention, block.mlp
        parts = []
        for j, d in enumerate(nest.widths):
            mine_only = attention.inward_of(j) if d else torch.zeros(0, 0)
            weight = F.pad(mine_only, (0, D - mine_only.shape[1], 0, 3 * D - mine_only.shape[0]))
            parts.append(norm(x) @ weight.T + attention.inward_bias[j])
        kvq = torch.stack([torch.where(m, part, 0) for m, part in zip(mine, parts, strict=True)]).sum(0)
        k, v, q = (part.unflatten(-1, (heads, each)).transpose(1, 2) for part in kvq.split(D, -1))
        weights = (q @ k.transpose(-1, -2)) / each**0.5
        weights = weights.masked_fill(~alive[:, None, None], -torch.inf).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        step = torch.zeros_like(x)
        for j, d in enumerate(nest.widths):
            asked = mixed * (channel < nest.heads[j] * each)
            answer = (asked @ attention.outward.T + attention.outward_bias[j]) * (channel < d)
            step = torch.where(mine[j], answer, step)
        x = x + step
        step = torch.zeros_like(x)
        for j, d in enumerate(nest.widths):
            up = (norm(x) * (channel < d)) @ mlp.inward.T + mlp.inward_bias[j]
            act = ACTIVATIONS[s.activation](up)
            act = act * (torch.arange(act.shape[-1]) < nest.hidden[j])
            down = F.pad(mlp.outward_of(j), (0, nest.hidden[-1] - nest.hidden[j], 0, D - d))
            answer = (act @ down.T + mlp.outward_bias[j]) * (channel < d)
            step = torch.where(mine[j], answer, step)
        alpha = 0.0 if mlp.alpha is None else mlp.alpha
        x = x + step * (1 + alpha * gate)
    out = torch.zeros_like(x)
    for j, d in enumerate(nest.widths):
        out = torch.where(mine[j], F.linear(norm(x)[..., :d], model.readout.map(j), model.readout.bias[j]), out)
    return out
