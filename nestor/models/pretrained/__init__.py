"""Foreign weights into ours: every supported source becomes one plain description."""

from nestor.models.pretrained.read import read
from nestor.models.pretrained.saliency import read_saliency

__all__ = ["read", "read_saliency"]
