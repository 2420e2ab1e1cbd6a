"""Foreign weights into ours: every supported source becomes one plain description."""

from nestor.models.pretrained.read import read

__all__ = ["read"]
