"""What transformers keeps in config.json: our settings, and labels as it knows them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from transformers import PreTrainedConfig

from nestor.models.saved import KIND, TRANSFORMERS
from nestor.models.vit import ViTSettings
from nestor.store import FORMAT, VERSION, decode
from nestor.surgery.nest import shape

_WHERE = "this config"


class NestorConfig(PreTrainedConfig):
    """How a network is built, for transformers; `settings` are the fields of `ViTSettings` as JSON holds them.

    Without settings it stands for an untrained elastic ViT-S/16, for two classes as transformers has it. `num_labels`
    and `id2label` say what a classifier tells apart; at first they are the settings' own classes, which may be none.
    `format`, `version` and `kind` make the file ours too.

    Raises:
        ValueError: the settings are not those of a ViT.
    """

    model_type = TRANSFORMERS
    format: str = FORMAT
    version: int = VERSION
    kind: str = KIND
    settings: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.kind != KIND:
            raise ValueError(f"transformers can take networks of kind {KIND!r}; this one is of kind {self.kind!r}.")
        given = self.settings is not None
        if self.settings is None:
            nest = shape(384, 1536, 6)
            self.settings = asdict(ViTSettings(nest=nest, depth=12, patch=16, grid=(14, 14)))
        self.settings = json.loads(json.dumps(self.settings))
        known = self._known()
        if not self.id2label:
            # Without a number transformers would assume two classes, and a head for them that nobody trained.
            own = dict(enumerate(known.labels or _numbered(known.classes)))
            self.id2label = own if given and kwargs.get("num_labels") is None else None
        super().__post_init__(**kwargs)
        if self.label2id is None and self.id2label is not None:
            self.label2id = {str(label): int(i) for i, label in self.id2label.items()}

    @classmethod
    def of(cls, settings: ViTSettings) -> NestorConfig:
        """The config of a network with these settings."""
        return cls(settings=asdict(settings))

    def network(self, *, head: bool) -> ViTSettings:
        """The settings of the network that is meant, with a head for the labels or with none.

        A head for another number of classes than the settings' own reads the same tokens; where there was none, it
        reads class token and mean patch.

        Raises:
            ValueError: a head is wanted and there are no labels.
        """
        known = self._known()
        if not head:
            return replace(known, classes=0, labels=())
        count = self.num_labels or 0
        if not count:
            raise ValueError(
                "a classifier needs a head, and this network has none: its settings name 0 classes. Fit it first, "
                "nestor fit, or say how many classes a new head is to learn: num_labels=10."
            )
        given: dict[Any, Any] = self.id2label or {}
        names = tuple(str(given[i]) for i in range(count))
        labels = known.labels if names == _numbered(count) and count == known.classes else names
        kind = known.head if known.classes else "class_mean" if known.prefix else "mean"
        return replace(known, classes=count, labels=labels, head=kind)

    @property
    def hidden_size(self) -> int:
        """D."""
        return self._known().nest.widths[-1]

    @property
    def num_hidden_layers(self) -> int:
        """How many blocks."""
        return self._known().depth

    @property
    def num_attention_heads(self) -> int:
        """Heads of the widest expert."""
        return self._known().nest.heads[-1]

    @property
    def image_size(self) -> int:
        """The side in pixels that the weights were made for."""
        return self._known().nominal

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self._known().patch

    @property
    def num_channels(self) -> int:
        """Channels of a picture."""
        return self._known().channels

    def _known(self) -> ViTSettings:
        return decode(self.settings, ViTSettings, "settings", _WHERE)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))
