"""From tokens to what a task asks for: numbers for a picture, or numbers for each of its pixels."""

from __future__ import annotations

from typing import Protocol, final

from torch import Tensor, nn


class Answer(Protocol):
    """A head of a network with several tasks."""

    def __call__(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, T, D), patches last and row by row on a grid, into the answers (B, ...)."""
        ...

    def macs(self, patches: int) -> int:
        """Multiply-accumulates of one item with this many patches."""
        ...


@final
class OfMean(nn.Module):
    """A linear map of the mean patch.

    Args:
        width: D.
        outputs: how many numbers.
        prefix: tokens before the patches.
    """

    def __init__(self, width: int, outputs: int, *, prefix: int = 0):
        super().__init__()
        self.prefix, self.linear = prefix, nn.Linear(width, outputs)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, T, D) -> (B, outputs)."""
        return self.linear(tokens[:, self.prefix :].mean(1))

    def macs(self, patches: int) -> int:
        """Multiply-accumulates of one item."""
        return self.linear.weight.numel()


@final
class OfPixels(nn.Module):
    """A linear map of each patch into the numbers of its own pixels.

    Args:
        width: D.
        patch: its side in pixels.
        channels: C, numbers of a pixel.
        prefix: tokens before the patches.
    """

    def __init__(self, width: int, patch: int, channels: int, *, prefix: int = 0):
        super().__init__()
        self.prefix, self.patch, self.channels = prefix, patch, channels
        self.linear = nn.Linear(width, channels * patch * patch)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, T, D) -> (B, C, H, W)."""
        p = self.patch
        cells = self.linear(tokens[:, self.prefix :]).unflatten(-1, (self.channels, p, p)).unflatten(1, grid)
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def macs(self, patches: int) -> int:
        """Multiply-accumulates of one item with this many patches."""
        return patches * self.linear.weight.numel()


@final
class OfClassToken(nn.Module):
    """A network of three layers with batch norm on the first token, for losses that compare items with one another.

    Args:
        width: D.
        hidden: units of the two inner layers.
        outputs: how many numbers.
    """

    def __init__(self, width: int, hidden: int, outputs: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
        self.norm1, self.norm2 = nn.BatchNorm1d(hidden), nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, T, D) -> (B, outputs)."""
        inner = self.norm1(self.first(tokens[:, 0])).relu()
        return self.last(self.norm2(self.second(inner)).relu())

    def macs(self, patches: int) -> int:
        """Multiply-accumulates of one item."""
        return sum(each.weight.numel() for each in (self.first, self.second, self.last))
