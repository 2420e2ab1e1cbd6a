"""Dense to elastic on clips: the spatial encoder of a video network gets nested experts, the rest stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.models.scratch_video import with_space
from nestor.surgery.nest import nest

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.layers.nested import Nest
    from nestor.models.video import VideoViT


def nested_space(model: VideoViT, clips: Tensor, form: Nest, *, compensated: bool = True) -> VideoViT:
    """A copy of a video network whose spatial encoder is elastic, exact at full budget.

    Args:
        model: with one expert.
        clips: (n, F, 3, H, W), normalised; what they show index by index orders the encoder's channels.
        form: of the encoder's experts.
        compensated: as in `nestor.surgery.nest`; False where all is to be trained from nothing.

    Raises:
        ValueError: the clips do not fit the network, it is nested already, or the form does not end with its own sizes.
    """
    return with_space(model, nest(model.space, model.pictures(clips), nest=form, compensated=compensated))
