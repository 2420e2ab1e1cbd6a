"""From patch tokens to a map: one number for each pixel of the picture."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, final

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of the kernels, in cells.
_SIDE = 4


@final
class MapHead(nn.Module):
    """Transposed convolutions, each doubling rows and columns, a map of what they give, and that at the picture's size.

    Args:
        widths: channels of the tokens, then of what each transposed convolution gives.

    Raises:
        ValueError: when there is no width, or one is below 1.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be numbers of channels, at least one; got {tuple(widths)}.")
        self.widths = tuple(widths)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, kernel_size=_SIDE, stride=2, padding=1) for a, b in pairwise(self.widths)
        )
        self.last = nn.Conv2d(self.widths[-1], 1, kernel_size=1)

    def forward(self, patches: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Patch tokens (B, N, D), row by row on a grid, into log-odds (B, H, W) at this size in pixels."""
        cells = patches.transpose(1, 2).unflatten(2, grid)
        for layer in self.up:
            cells = F.relu(layer(cells))
        return F.interpolate(self.last(cells), size=size, mode="bilinear", align_corners=False).squeeze(1)

    def macs(self, patches: int) -> int:
        """Multiply-accumulates of one picture with this many patches, but for the change of size."""
        doubled = sum(4**i * _SIDE * _SIDE * a * b for i, (a, b) in enumerate(pairwise(self.widths)))
        return patches * (doubled + 4 ** len(self.up) * self.widths[-1])
