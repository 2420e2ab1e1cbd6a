"""A network whose blocks launch few and large kernels on a GPU."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

from torch import nn

from nestor.layers.nested import NestedBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.vit import ViT


def fuse(model: ViT) -> ViT:
    """A copy of a network in which each projection is one Triton kernel for all experts, with what surrounds it fused.

    It can be run, trained, saved and loaded as the network can; what is loaded again is as it was before. Its answers
    differ by rounding only.

    Args:
        model: a network on a CUDA GPU; it is not changed.

    Raises:
        ImportError: Triton is missing.
        ValueError: the network is not on a GPU and Triton's interpreter is not asked for, or a block is of another
            kind, such as those of a network in eight bits.
    """
    try:
        from nestor.layers.fused import FusedBlock
        from nestor.ops.kernel import ready
    except ModuleNotFoundError as error:
        raise ImportError(
            "fused kernels need triton, which comes with torch for CUDA GPUs on Linux. Install that build of torch."
        ) from error
    if not ready(model.embed.weight.device):
        raise ValueError(
            f"fused kernels run on CUDA GPUs; this network is on {model.embed.weight.device}. Move it there, or set "
            "TRITON_INTERPRET=1 before Python starts to try them slowly without one."
        )
    if other := next((block for block in model.blocks if not isinstance(block, NestedBlock)), None):
        raise ValueError(f"blocks to be fused must be nested ones; got {type(other).__name__}. Fuse the original.")
    new = copy.deepcopy(model)
    new.blocks = cast("Sequence[NestedBlock]", nn.ModuleList(FusedBlock(block) for block in new.blocks))
    return new
