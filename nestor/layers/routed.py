"""A transformer block whose attention decides too, not only its feed-forward part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Any

    from nestor.layers.together import Layer
    from nestor.types import Routing, Signal


class RoutedAttention(Protocol):
    """Attention that takes a decision: `layers.heads` has some."""

    def __call__(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D) and the decision taken."""
        ...

    def macs(self, routing: Routing, shape: tuple[int, int, int], /) -> int:
        """Multiply-accumulates that a decision came to, on tokens of this shape (B, T, D)."""
        ...


@final
class RoutedBlock(nn.Module):
    """x + attention(norm(x)), then x + layer(norm(x)), with the decisions of both.

    Args:
        width: D.
        attention: of tokens, routed.
        layer: a mixture, one network, or several.
        eps: of the norms.
    """

    def __init__(self, width: int, attention: RoutedAttention, layer: Layer, *, eps: float = 1e-6):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.attention: Any = attention
        self.layer: Any = layer

    def forward(self, tokens: Tensor, signal: Signal) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D) and the decisions taken, that of the attention first."""
        answer, first = self.attention(self.norm1(tokens), signal)
        tokens = tokens + answer
        answer, second = self.layer(self.norm2(tokens), signal)
        return tokens + answer, (*first, *second)
