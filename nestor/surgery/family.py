"""A nested network and every other way to spend less than a dense one does, all made from the same weights.

For comparisons from nothing, where weights are random still and each network learns by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nestor.layers.nested import Nest
from nestor.models.merged import Merged
from nestor.models.pruned import Pruned
from nestor.models.uniform import Uniform, randomly_routed
from nestor.surgery.nest import nest, published

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.models.video import Network
    from nestor.models.vit import ViT


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """Networks of one size, each of which but the dense one runs at many budgets.

    Attributes:
        dense: what all others are made from.
        nested: its channels, hidden units and heads as nested experts.
        published: the same with four widths that halve from one to the next, and all hidden units at each.
        random: nested with patches drawn by lot.
        uniform: all patches at the same published width (MatViT); a budget gets the widest that fits, since mixtures of
            widths over the layers are not tried.
        skipping: patches at full width or not at all (Mixture-of-Depths), decided once at the bottom, at any budget; as
            published, seven eighths of the tokens skip every other layer.
        pruned: the patches that the class token attends to least are dropped (EViT), a block earlier than published,
            so that it reaches low budgets; it has a class token more.
        merged: tokens alike are merged (ToMe).
    """

    dense: ViT
    nested: ViT
    published: ViT
    random: ViT
    uniform: Uniform
    skipping: ViT
    pruned: Pruned
    merged: Merged

    @property
    def elastic(self) -> dict[str, Network]:
        """All but the dense network, by the names under which they are compared, the nested one first."""
        return {
            "nested": self.nested,
            "published shape": self.published,
            "random router": self.random,
            "one width": self.uniform,
            "skipping": self.skipping,
            "pruning": self.pruned,
            "merging": self.merged,
        }


def family(dense: ViT, prefixed: ViT, images: Tensor, form: Nest) -> Family:
    """The family of a dense network; nothing is compensated, since all members are to be trained.

    Args:
        dense: with one expert; it is not changed, and shared by the member that merges its tokens.
        prefixed: the same with a class token, which pruning asks; of three blocks or more.
        images: (n, 3, H, W) pictures, normalised, that order the channels of nested networks.
        form: shape of the nested network.

    Raises:
        ValueError: the dense network has more than one expert, the other no class token or too few blocks, or the form
            does not end with the whole network.
    """
    own = dense.settings.nest
    D, hidden, heads = own.widths[-1], own.hidden[-1], own.heads[-1]
    nested = nest(dense, images, nest=form, compensated=False)
    halving = nest(dense, images, nest=published(D, hidden, heads), compensated=False)
    skips = Nest(widths=(0, D), hidden=(0, hidden), heads=(0, heads))
    return Family(
        dense=dense,
        nested=nested,
        published=halving,
        random=randomly_routed(nested),
        uniform=Uniform(halving),
        skipping=nest(dense, images, nest=skips, compensated=False),
        pruned=Pruned(prefixed, stages=(0, 1, 2)),
        merged=Merged(dense),
    )
