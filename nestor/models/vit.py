"""The elastic vision transformer: one set of weights, any compute budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, cast, final

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nestor.layers.embed import PatchEmbed
from nestor.layers.nested import Nest, NestedBlock
from nestor.layers.readout import Head, Readout
from nestor.models.latency import fraction
from nestor.ops.bands import sort
from nestor.ops.thin import spread, stages, thin
from nestor.ops.tokens import match_macs
from nestor.routing.allocation import EVEN, Allocation
from nestor.routing.capacity import whole
from nestor.routing.router import ExpertPreferredRouter
from nestor.routing.score import ExpectedLoss, Linear, Perturbed, Score, Sum, TrailingEnergy, Uniform
from nestor.types import Output, Signal, Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.latency import LatencyTable
    from nestor.ops.bands import Band
    from nestor.types import Latency, Routing


@dataclass(frozen=True, kw_only=True)
class ViTSettings:
    """How an elastic vision transformer is built; the meaning of each field is that of PlainSettings.

    `nest` holds widths, hidden units and heads of every expert (one expert: an ordinary network); `scores` names what
    the router sums up: `loss` (expected loss), `trailing` (energy), `linear` (learned), `uniform` (random),
    `perturbed` (noise while training); `embed_norm` tells whether a norm follows the embedding; `nominal` is the side
    in pixels that the weights were made for; `channels` are those of a picture; `allocation` shares the tokens among
    the experts at each budget.
    """

    nest: Nest
    depth: int
    patch: int
    grid: tuple[int, int]
    prefix: int = 1
    activation: str = "gelu"
    eps: float = 1e-6
    antialias: bool = False
    embed_norm: bool = False
    classes: int = 0
    labels: tuple[str, ...] = ()
    head: str = "class"
    scores: tuple[str, ...] = ("loss",)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    source: str = "nestor"
    nominal: int = 224
    channels: int = 3
    allocation: Allocation = EVEN


@final
class ViT(nn.Module):
    """A vision transformer whose tokens each run at one of E widths, so that its cost is a dial.

    A router decides once, on the embedded patches, which expert (prefix of the same weights) each token takes; how many
    take which follows from `budget`, exactly and alike for every picture (MoNE, arXiv 2407.19985). Prefix tokens always
    run at full width. Where the nest says so, tokens also merge on the way (nestor.ops.thin), so that the budget is
    spent on fewer tokens and on narrower ones. With one expert it is an ordinary vision transformer.

    Its weights are folded (nestor.surgery.fold): norms carry no parameters and the stream may be rotated; `tokens` are
    given in the original basis all the same.

    Attributes:
        budget: the fraction of the full network's multiply-accumulates that one forward pass may spend. May be set
            between any two calls, or given with a call; a `Latency` becomes the largest fraction that keeps it.
        latencies: what was measured of its speed, on this machine or others (nestor.measure.latency).
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    blocks: Sequence[NestedBlock]

    def __init__(self, settings: ViTSettings):
        super().__init__()
        s = self.settings = settings
        E, D = s.nest.experts, s.nest.widths[-1]
        s.allocation.check(E)
        self.embed = PatchEmbed(
            width=D,
            patch=s.patch,
            grid=s.grid,
            prefix=s.prefix,
            antialias=s.antialias,
            norm_eps=s.eps if s.embed_norm else None,
            channels=s.channels,
        )
        self.router = ExpertPreferredRouter(Sum([_score(name, s.nest) for name in s.scores])) if E > 1 else None
        blocks = nn.ModuleList(NestedBlock(s.nest, s.eps, s.activation) for _ in range(s.depth))
        self.blocks = cast("Sequence[NestedBlock]", blocks)
        self.readout = Readout(s.nest, s.eps)
        self.head = (
            Head(kind=s.head, nest=s.nest, classes=s.classes, prefix=s.prefix, activation=s.activation, eps=s.eps)
            if s.classes
            else None
        )
        self.checkpointing = False
        self.latencies: tuple[LatencyTable, ...] = ()
        self._budget = 1.0
        self._plans: dict[tuple[int, float], tuple[int, ...]] = {}

    @property
    def budget(self) -> float:
        """The fraction of the full network's multiply-accumulates that a forward pass may spend."""
        return self._budget

    @budget.setter
    def budget(self, value: float | Latency) -> None:
        side = self.settings.nominal // self.settings.patch
        value = fraction(self, value, side * side)
        self.plan(side * side, value)
        self._budget = float(value)

    def forward(self, images: Tensor, budget: float | Latency | None = None) -> Output:
        """(B, 3, H, W), normalised, of any size that the patches divide -> logits, tokens and routings.

        Args:
            images: pictures.
            budget: overrides `self.budget` for this call.

        Raises:
            ValueError: when the pictures do not fit the patches, or the budget cannot be met.
        """
        rows, columns = self.cells(images.shape)
        share = self._budget if budget is None else fraction(self, budget, rows * columns, len(images))
        return self.run(images, self.plan(rows * columns, share))

    def run(self, images: Tensor, counts: tuple[int, ...]) -> Output:
        """Run a plan, as from `plan`: counts[j] patches of each picture (B, 3, H, W) take expert j."""
        return self.finish(*self.encode(images, counts))

    def encode(self, images: Tensor, counts: tuple[int, ...]) -> tuple[Sequence[Band], Tensor, tuple[Routing, ...]]:
        """What the last block leaves under a plan, for `finish`: bands, their positions (B, T) and the decisions."""
        tokens = self.embed(images)
        routing = self.route(tokens, counts, self.cells(images.shape))
        bands, order = sort(tokens, routing, counts, self.settings.nest.widths, self.settings.prefix)
        last, prefix = self.settings.nest.experts - 1, self.settings.prefix
        for block, sizes in zip(self.blocks, self.sizes(counts), strict=True):
            bands = tuple(thin(band, sizes[band.expert], prefix if band.expert == last else 0) for band in bands)
            bands = checkpoint(block, bands, use_reentrant=False) if self.checkpointing else block(bands)
        return tuple(spread(band) for band in bands), order, () if routing is None else (routing,)

    def finish(self, bands: Sequence[Band], order: Tensor, routings: tuple[Routing, ...] = ()) -> Output:
        """What the last block left, as bands with their positions (B, T), into logits and tokens."""
        logits = None if self.head is None else self.head(self.readout, bands, order)
        return Output(logits, routings, partial(self.readout, bands, order))

    def cells(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches of pictures of this shape (B, 3, H, W).

        Raises:
            ValueError: when the pictures do not fit the patches.
        """
        return self.embed.cells(shape)

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """How many patches of each picture every expert serves at this budget: E whole numbers.

        The split that the settings' allocation gives; what it spends never exceeds the budget, rounded to whole
        multiply-accumulates, and misses it by less than one token, or two where tokens merge.

        Raises:
            ValueError: when the budget lies outside what the widths allow.
        """
        if (known := self._plans.get((patches, budget))) is not None:
            return known
        counts = self._solve(patches, budget)
        self._plans[patches, budget] = counts
        return counts

    def macs(self, counts: Sequence[int]) -> int:
        """Multiply-accumulates of one picture whose patches are spread over the experts like this."""
        every = self.sizes(counts)
        total = self.embed.macs(sum(counts)) + self.merging_macs(counts)
        for block, sizes in zip(self.blocks, every, strict=True):
            total += block.macs(sizes)
        if self.router is not None:
            total += self.router.macs(sum(counts))
        return total + (0 if self.head is None else self.head.macs(self.readout, every[0]))

    def sizes(self, counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """How many tokens of each expert every block gets under a plan, the prefix included: (depth, E) numbers."""
        found = stages(counts, self.settings.nest.merge, self.settings.depth)
        return tuple((*sizes[:-1], sizes[-1] + self.settings.prefix) for sizes in found)

    def merging_macs(self, counts: Sequence[int]) -> int:
        """Multiply-accumulates of finding out which tokens of a picture are alike under a plan."""
        nest = self.settings.nest
        total = 0
        for before, after in pairwise(stages(counts, nest.merge, self.settings.depth)):
            for n, left, width in zip(before, after, nest.widths, strict=True):
                total += match_macs(n, width) if left < n else 0
        return total

    def full_macs(self, patches: int) -> int:
        """Multiply-accumulates of one picture with this many patches, all of them at full width."""
        return self.macs([0] * (self.settings.nest.experts - 1) + [patches])

    def least_budget(self, patches: int) -> float:
        """The smallest budget that the widths allow."""
        return self.macs([patches] + [0] * (self.settings.nest.experts - 1)) / self.full_macs(patches)

    def _solve(self, patches: int, budget: float) -> tuple[int, ...]:
        E, full = self.settings.nest.experts, self.full_macs(patches)
        low = self.least_budget(patches) if E > 1 else 1.0
        # A rounding error below the least budget is the least budget.
        if not low * (1 - 1e-9) <= budget <= 1:
            raise ValueError(
                f"budget must lie in [{low:.3g}, 1] for widths {self.settings.nest.widths} and {patches} patches; "
                f"got {budget:.4g}. Add a narrower width or raise the budget."
            )
        if budget == 1:
            return (0,) * (E - 1) + (patches,)
        each = [self.macs([patches * (j == i) for j in range(E)]) / patches for i in range(E)]
        capacity = self.settings.allocation.capacity(min(max(budget * full / patches, each[0]), each[-1]), each)
        return whole(capacity, patches, self.macs, max(budget, low) * full + 0.5)

    def route(self, tokens: Tensor, counts: tuple[int, ...], grid: tuple[int, int]) -> Sparse | None:
        """The decision about embedded tokens (B, T, D) on this grid; None for a network with one expert."""
        if self.router is None:
            return None
        return self.router(tokens[:, self.settings.prefix :], Signal(counts=counts, grid=grid))


def _score(name: str, nest: Nest) -> Score:
    # Tokens that are narrow at the most lose what lies beyond these channels; where all others skip, that is all.
    narrow = next((width for width in nest.widths[:-1] if width), 0)
    match name:
        case "loss":
            return ExpectedLoss(narrow, nest.widths[-1], nest.experts)
        case "trailing":
            return TrailingEnergy(narrow, nest.experts)
        case "linear":
            return Linear(nest.widths[-1], nest.experts)
        case "uniform":
            return Uniform(nest.experts)
        case "perturbed":
            return Perturbed(nest.experts)
        case _:
            raise ValueError(f"scores must be among loss, trailing, linear, uniform, perturbed; got {name!r}.")
