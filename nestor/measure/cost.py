"""What a forward pass costs: multiply-accumulates, parameters and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from nestor.layers.nested import Nest
    from nestor.models.video import VideoSettings
    from nestor.models.vit import ViT, ViTSettings
    from nestor.types import Output


class Elastic(Protocol):
    """A network whose cost is a dial: `ViT`, `VideoViT` and the rivals in `nestor.models` all answer to this."""

    @property
    def settings(self) -> ViTSettings | VideoSettings:
        """How the network is built."""
        ...

    def __call__(self, images: Tensor, /, budget: float | None = None) -> Output:
        """(B, 3, H, W) or (B, F, 3, H, W) -> logits, tokens and routings within the budget."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of a module."""
        ...

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """What the budget comes to, in whole numbers."""
        ...

    def macs(self, plan: tuple[int, ...], /) -> int:
        """Multiply-accumulates of one picture under a plan."""
        ...

    def full_macs(self, patches: int) -> int:
        """Multiply-accumulates of one picture at full budget."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one picture costs at one budget.

    Attributes:
        macs: multiply-accumulates of the forward pass, up to the logits if there is a head.
        full_macs: the same at full budget.
        readout_macs: what reading `Output.tokens` costs on top of `macs`.
        parameters: all of them, whatever the budget.
        active_parameters: weights of the blocks that a token meets, averaged over the tokens.
        weight_bytes: parameters and buffers as they lie in memory.
        parts: `macs` by embed, router, attention, feedforward, merging and head.
    """

    macs: int
    full_macs: int
    readout_macs: int
    parameters: int
    active_parameters: int
    weight_bytes: int
    parts: Mapping[str, int]

    @property
    def ratio(self) -> float:
        """The fraction of the full network's multiply-accumulates that is spent."""
        return self.macs / self.full_macs


def cost(model: ViT, size: int | tuple[int, int], budget: float = 1.0) -> Cost:
    """Count what one picture of this size (pixels; one side, or height and width) costs at this budget.

    Raises:
        ValueError: when the patches do not divide the size, or the budget cannot be met.
    """
    counts = model.plan(patches(model, size), budget)
    total, every = sum(counts), model.sizes(counts)
    blocks = list(zip(model.blocks, every, strict=True))
    parts = {
        "embed": model.embed.macs(total),
        "router": 0 if model.router is None else model.router.macs(total),
        "attention": sum(block.attention.macs(sizes) for block, sizes in blocks),
        "feedforward": sum(block.mlp.macs(sizes) for block, sizes in blocks),
        "merging": model.merging_macs(counts),
        "head": 0 if model.head is None else model.head.macs(model.readout, every[0]),
    }
    met = parts["attention"] + parts["feedforward"] - sum(_compared(model.settings.nest, sizes) for sizes in every)
    return Cost(
        macs=sum(parts.values()),
        full_macs=model.full_macs(total),
        readout_macs=model.readout.macs(every[0]),
        parameters=parameters(model),
        active_parameters=round(met / sum(every[0])),
        weight_bytes=weight_bytes(model),
        parts=parts,
    )


def _compared(nest: Nest, sizes: Sequence[int]) -> int:
    """Multiply-accumulates of a block's attention that meet no weights."""
    each = nest.widths[-1] // nest.heads[-1]
    keys = sum(n for n, d in zip(sizes, nest.widths, strict=True) if d)
    return sum(2 * n * keys * h * each for n, d, h in zip(sizes, nest.widths, nest.heads, strict=True) if d)


def patches(model: Elastic, size: int | tuple[int, int]) -> int:
    """How many patches a picture of this size in pixels has.

    Raises:
        ValueError: when the patches do not divide the size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    patch = model.settings.patch
    if min(height, width) < 1 or height % patch or width % patch:
        raise ValueError(
            f"size must be a multiple of the patch, {patch}; got {height} x {width}. Take {16 * patch}, for instance."
        )
    return (height // patch) * (width // patch)


def parameters(model: nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """How many bytes its parameters and buffers take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
