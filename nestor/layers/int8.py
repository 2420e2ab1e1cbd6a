"""The sublayers of a nested transformer in eight-bit numbers, to run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast, final

import torch
from torch import Tensor, nn

from nestor.layers.nested import NestedBlock
from nestor.ops.attention import mixed
from nestor.ops.thin import sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.layers.nested import Nest
    from nestor.ops.bands import Band
    from nestor.ops.int8 import Product, Steps
    from nestor.ops.portable import Portable


@dataclass(frozen=True, eq=False, kw_only=True)
class Int8Attention:
    """What `nestor.layers.nested.Attention` does, with the two products of each of the E experts in eight bits.

    Attributes:
        nest: the shape of the experts.
        eps: of the norm.
        inward, outward: of each expert; None of a skip.
    """

    nest: Nest
    eps: float
    inward: Sequence[Product | Portable | None]
    outward: Sequence[Product | Portable | None]

    def __call__(self, bands: Sequence[Band]) -> tuple[Band, ...]:
        """Bands of (B, n, d) -> the same bands with attention's answer added."""
        skipped = [band for band in bands if self.inward[band.expert] is None]
        active = [band for band in bands if self.inward[band.expert] is not None]
        mixed = self.mixed(active)
        return (*(self._told(band, answer) for band, answer in zip(active, mixed, strict=True)), *skipped)

    def mixed(self, bands: Sequence[Band]) -> tuple[Tensor, ...]:
        """What the tokens of each band see in one another, (B, n, heads of the expert x e), before it is written."""
        D = self.nest.widths[-1]
        return mixed([self._asked(band) for band in bands], D, D // self.nest.heads[-1], sizes(bands))

    def _asked(self, band: Band) -> Tensor:
        product = cast("Product", self.inward[band.expert])
        return product(_normal(band, self.nest.widths[-1], self.eps, product), band.rows.dtype)

    def _told(self, band: Band, answer: Tensor) -> Band:
        product = cast("Product", self.outward[band.expert])
        return replace(band, rows=product.added(product.taken(answer), band.rows))


@dataclass(frozen=True, eq=False, kw_only=True)
class Int8FeedForward:
    """What `nestor.layers.nested.FeedForward` does, with the two products of each of the E experts in eight bits.

    Attributes:
        nest: the shape of the experts.
        eps: of the norm.
        activation: one of nestor.ops.linear.ACTIVATIONS.
        alpha: how much of the router's probability counts; None where nothing is routed.
        inward, outward: of each expert; None of a skip.
    """

    nest: Nest
    eps: float
    activation: str
    alpha: float | None
    inward: Sequence[Product | Portable | None]
    outward: Sequence[Product | Portable | None]

    def __call__(self, bands: Sequence[Band]) -> tuple[Band, ...]:
        """Bands of (B, n, d) -> the same bands with the feed-forward answer added."""
        return tuple(band if self.inward[band.expert] is None else self._answered(band) for band in bands)

    def hidden(self, band: Band, answer: Steps | None = None) -> Tensor:
        """Activations of a band's hidden units, (B, n, h), in the steps of the answer where they are given."""
        product = cast("Product", self.inward[band.expert])
        rows = _normal(band, self.nest.widths[-1], self.eps, product)
        return product.activated(rows, self.activation, answer)

    def _answered(self, band: Band) -> Band:
        product = cast("Product", self.outward[band.expert])
        units = self.hidden(band, product.given)
        if band.gate is None or not self.alpha:
            return replace(band, rows=product.added(units, band.rows))
        write = product(units, band.rows.dtype)
        return replace(band, rows=torch.addcmul(band.rows, write, (1 + self.alpha * band.gate).to(write.dtype)))


@final
class Int8Block(nn.Module):
    """Attention, then feed-forward, each on what the norm gives and added to the stream.

    Raises:
        ValueError: when it is to be saved.
    """

    def __init__(self, attention: Int8Attention, mlp: Int8FeedForward, fan: int):
        super().__init__()
        self.attention, self.mlp = attention, mlp
        self.nest, self.fan = attention.nest, fan

    def forward(self, bands: Sequence[Band]) -> tuple[Band, ...]:
        """Bands -> bands."""
        return self.mlp(self.attention(bands))

    def macs(self, sizes: Sequence[int]) -> int:
        """Multiply-accumulates of one item with sizes[j] tokens of expert j, however many bits they have."""
        return NestedBlock.macs(cast("NestedBlock", self), sizes)

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        raise ValueError(
            "a network in eight bits is for running and not for saving. Save the one that it was made of, and make it "
            "again: nestor.surgery.quantize.quantize(nestor.load(folder), pictures)."
        )


def _normal(band: Band, width: int, eps: float, product: Product | Portable) -> Tensor:
    """x / rms(x) of a band's rows (B, n, d), as a product wants it; see nestor.ops.bands.normalise."""
    norm = torch.linalg.vector_norm(band.rows, dim=-1, keepdim=True, dtype=torch.float32)
    return product.taken(band.rows, torch.rsqrt((norm.square() + band.tail) / width + eps))
