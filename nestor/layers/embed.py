"""Pictures into tokens."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@final
class PatchEmbed(nn.Module):
    """Cuts pictures into patches, projects them, adds positions and puts the prefix tokens in front.

    Args:
        width: D.
        patch: side of a patch in pixels.
        grid: rows and columns of the stored positions; other sizes are resized bicubically.
        prefix: class, distillation and register tokens.
        antialias: whether resizing positions downwards smooths them, as some families do.
        norm_eps: for a norm after the embedding (CLIP), else None. The norm's scale and shift are part of `turn`.
        channels: of a picture, C.
    """

    def __init__(
        self,
        *,
        width: int,
        patch: int,
        grid: tuple[int, int],
        prefix: int,
        antialias: bool,
        norm_eps: float | None,
        channels: int = 3,
    ):
        super().__init__()
        self.patch, self.grid, self.antialias, self.norm_eps = patch, grid, antialias, norm_eps
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(width, channels * patch * patch))
        self.bias = nn.Parameter(torch.zeros(width))
        self.prefix = nn.Parameter(torch.randn(prefix, width) * 0.02)
        self.position = nn.Parameter(torch.randn(*grid, width) * 0.02)
        self.turn = None if norm_eps is None else nn.Linear(width, width)
        nn.init.trunc_normal_(self.weight, std=(channels * patch * patch) ** -0.5)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D), prefix first, then the patches row by row.

        Raises:
            ValueError: when the pictures are not (B, C, H, W) with sides that the patch divides.
        """
        rows, columns = self.cells(images.shape)
        p = self.patch
        cut = images.unflatten(3, (columns, p)).unflatten(2, (rows, p))
        patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        tokens = F.linear(patches, self.weight, self.bias) + self.positions(rows, columns)
        prefix = self.prefix.to(tokens.dtype).expand(images.shape[0], -1, -1)
        tokens = torch.cat([prefix, tokens], 1) if self.prefix.shape[0] else tokens
        if self.turn is None:
            return tokens
        return self.turn(F.layer_norm(tokens, tokens.shape[-1:], eps=self.norm_eps or 0.0))

    def cells(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches of pictures of this shape (B, C, H, W)."""
        if len(shape) != 4 or shape[1] != self.channels or shape[2] % self.patch or shape[3] % self.patch or 0 in shape:
            raise ValueError(
                f"images must be (B, {self.channels}, H, W) with H and W multiples of the patch, {self.patch}; "
                f"got {tuple(shape)}. Resize the pictures, for instance to {16 * self.patch} pixels."
            )
        return shape[2] // self.patch, shape[3] // self.patch

    def macs(self, patches: int) -> int:
        """Multiply-accumulates of one item with this many patches."""
        width = len(self.bias)
        turn = 0 if self.turn is None else (patches + self.prefix.shape[0]) * width * width
        return patches * self.weight.numel() + turn

    def positions(self, rows: int, columns: int) -> Tensor:
        """What is added to the patches of a grid, (rows * columns, D)."""
        stored = self.position
        if (rows, columns) != self.grid:
            planes = stored.float().permute(2, 0, 1).unsqueeze(0)
            resized = F.interpolate(planes, (rows, columns), mode="bicubic", antialias=self.antialias)
            stored = resized.squeeze(0).permute(1, 2, 0).to(self.position.dtype)
        return stored.flatten(0, 1)
