"""An elastic network under timm's verbs, for code that was written for timm's models."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from nestor.layers.readout import Head
from nestor.models.vit import ViT, ViTSettings

POOLS = {"token": "class", "avg": "mean"}


def with_body(model: ViT, settings: ViTSettings) -> ViT:
    """A network over the very modules of another, with a fresh head (or none) as these settings say.

    Args:
        model: the other network; it stays as it is, and shares all weights but the head's.
        settings: those of `model`, up to classes, labels and head.
    """
    with torch.device("meta"):
        new = ViT(settings)
    for name in ("embed", "router", "blocks", "readout"):
        setattr(new, name, getattr(model, name))
    if settings.classes:
        head = Head(
            kind=settings.head,
            nest=settings.nest,
            classes=settings.classes,
            prefix=settings.prefix,
            activation=settings.activation,
            eps=settings.eps,
        )
        new.head = head.to(model.embed.weight)
    new.checkpointing = model.checkpointing
    return new.train(model.training)


@final
class TimmStyle(nn.Module):
    """A `ViT` that answers to `forward_features`, `forward_head`, `get_classifier` and `reset_classifier`.

    Attributes:
        vit: the network; `reset_classifier` puts another one over the same body in its place.
        num_features, embed_dim, head_hidden_size: D.
        num_prefix_tokens: tokens before the patches.
        pretrained_cfg: how pictures are to be prepared, as `timm.data.resolve_data_config` reads it.
    """

    def __init__(self, vit: ViT):
        super().__init__()
        s, self.vit = vit.settings, vit
        self.num_features = self.embed_dim = self.head_hidden_size = s.nest.widths[-1]
        self.num_prefix_tokens = s.prefix
        self.pretrained_cfg = self.default_cfg = {
            "input_size": (s.channels, s.nominal, s.nominal),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": s.mean,
            "std": s.std,
        }

    @property
    def num_classes(self) -> int:
        """How many logits; 0 without a head."""
        return self.vit.settings.classes

    @property
    def budget(self) -> float:
        """The fraction of the full network's multiply-accumulates that a forward pass may spend."""
        return self.vit.budget

    @budget.setter
    def budget(self, value: float) -> None:
        self.vit.budget = value

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, classes), or without a head the first token (B, D), without that the mean."""
        output = self.vit(images)
        return self._pooled(output.tokens) if output.logits is None else output.logits

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> tokens after the final norm (B, T, D), prefix first."""
        return self.vit(images).tokens

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward` makes of the tokens (B, T, D) that `forward_features` gave.

        Args:
            tokens: (B, T, D).
            pre_logits: stop before the classifier, at what it reads.

        Raises:
            ValueError: the head reads what lies before the final norm, or two classifiers read different tokens.
        """
        head, front = self.vit.head, self.vit.settings.prefix
        if head is None:
            return self._pooled(tokens)
        match head.kind:
            case "class":
                read = tokens[:, 0]
            case "mean":
                read = tokens[:, front:].mean(1)
            case "class_mean":
                read = torch.cat([tokens[:, 0], tokens[:, front:].mean(1)], -1)
            case "attention" if head.pool is not None:
                read = head.pool(tokens)
            case "class_distill" if head.distill is not None and not pre_logits:
                return (head.linear(tokens[:, 0]) + head.distill(tokens[:, 1])) / 2
            case kind:
                raise ValueError(f"forward_head cannot read {kind!r} from tokens alone. Call the network itself.")
        return read if pre_logits else head.linear(read)

    def get_classifier(self) -> nn.Module:
        """The last linear layer; an identity without a head."""
        return nn.Identity() if self.vit.head is None else self.vit.head.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh head in the place of the old one, or none; all other weights stay the same objects.

        Args:
            num_classes: how many logits; 0 for no head.
            global_pool: `token` or `avg`; by default what the old head read as far as a fresh one can, else the first
                token, or the mean where there is none.

        Raises:
            ValueError: there is no such pool, or no class token for it.
        """
        old = self.vit.settings
        if global_pool is None:
            usable = old.head in ("class", "mean", "class_mean") and old.classes
            kind = old.head if usable else "class" if old.prefix else "mean"
        elif global_pool in POOLS:
            kind = POOLS[global_pool]
        else:
            raise ValueError(f"global_pool must be one of {', '.join(POOLS)}; got {global_pool!r}.")
        if kind != "mean" and not old.prefix:
            raise ValueError("global_pool 'token' needs a class token and this network has none. Use 'avg'.")
        self.vit = with_body(self.vit, replace(old, classes=num_classes, labels=(), head=kind))

    def _pooled(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.num_prefix_tokens else tokens.mean(1)
