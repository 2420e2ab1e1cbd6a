"""Small vision transformers with weights that would show if they went astray."""

from plain_vit import randomise

from nestor.layers.nested import Nest
from nestor.models.vit import ViT, ViTSettings

DENSE = Nest(widths=(24,), hidden=(48,), heads=(4,))
PUBLISHED = Nest(widths=(6, 12, 24), hidden=(48, 48, 48), heads=(4, 4, 4))
NARROWED = Nest(widths=(6, 12, 18, 24), hidden=(12, 24, 36, 48), heads=(1, 2, 3, 4))
OWN = Nest(widths=(6, 12, 24), hidden=(12, 24, 48), heads=(4, 4, 4), own=True)
SKIPPING = Nest(widths=(0, 12, 24), hidden=(0, 24, 48), heads=(0, 2, 4))


def tiny(nest: Nest = DENSE, **changes) -> ViT:
    """A ViT of two blocks with patches of 4 pixels; `changes` are fields of ViTSettings."""
    fields = {"depth": 2, "patch": 4, "grid": (4, 4), "nominal": 16} | changes
    fields.setdefault("scores", ("trailing", "linear") if nest.experts > 1 else ())
    model = ViT(ViTSettings(nest=nest, **fields))
    randomise(model)
    return model.eval()
