"""A network of maps made elastic, and its rivals, all with the full network's own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.models.mapped import Mapped
from nestor.models.merged import Merged
from nestor.models.pruned import Pruned
from nestor.models.uniform import Uniform
from nestor.surgery.nest import nest, shape

if TYPE_CHECKING:
    from torch import Tensor


def elastic_maps(full: Mapped, images: Tensor) -> dict[str, Mapped]:
    """Every way to draw a network's maps for less, by name and before any training; all share its head.

    They are `nested`, in the default shape; `merging` and `pruning` of the full network's tokens; and `uniform width`,
    one of four nested widths for all patches alike, so that it has as many budgets.

    Args:
        full: its backbone has one expert and a class token; it is not changed.
        images: (n, 3, H, W) pictures, normalised, that the nested networks are fitted to in closed form.

    Raises:
        ValueError: the backbone has more than one expert, or no class token.
    """
    dense = full.inside
    own = dense.settings.nest
    widths = shape(own.widths[0], own.hidden[0], own.heads[0], (0.25, 0.5, 0.75, 1.0))
    backbones = {
        "nested": nest(dense, images),
        "merging": Merged(dense),
        "pruning": Pruned(dense),
        "uniform width": Uniform(nest(dense, images, nest=widths)),
    }
    return {name: Mapped(backbone, full.head) for name, backbone in backbones.items()}
