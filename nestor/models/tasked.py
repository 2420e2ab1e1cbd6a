"""One trunk for several tasks: every router is told the task, and every task has a head of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast, final

import torch
from torch import Tensor, nn

from nestor.experts.feedforward import FeedForward
from nestor.experts.linear import Linear
from nestor.experts.partly import PartlyShared
from nestor.layers.answers import Answer, OfMean, OfPixels
from nestor.layers.block import Dense
from nestor.layers.embed import PatchEmbed
from nestor.layers.mixture import Mixture
from nestor.layers.queries import MixedBlock, QueryMixture
from nestor.models.composed import stack
from nestor.routing.adjust import Noise, Softmax
from nestor.routing.choose import top_k
from nestor.routing.floor import Raised
from nestor.routing.given import Given, TaskBias
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.routing.score import Sum
from nestor.routing.several import ByTask
from nestor.types import Output, Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nestor.layers.block import Block


@final
class Tasked(nn.Module):
    """Pictures, the given blocks and a norm, and then the head of the task that is asked for.

    Args:
        embed: pictures into tokens.
        blocks: in their order.
        heads: of each task, by its number; more of them may serve other ends.
    """

    def __init__(self, embed: PatchEmbed, blocks: Sequence[Block | MixedBlock], heads: Sequence[nn.Module]):
        super().__init__()
        self.embed, self.blocks, self.heads = embed, nn.ModuleList(blocks), nn.ModuleList(heads)
        self.norm = nn.LayerNorm(embed.weight.shape[0], eps=1e-6)

    def forward(self, images: Tensor, task: int, told: int | None = None) -> Output:
        """(B, C, H, W) -> the task's answer as `logits`, the tokens and all decisions.

        Args:
            images: all of one task.
            task: the number of the head.
            told: what routers are told, the same number unless given.

        Raises:
            ValueError: when there is no such head.
        """
        if not 0 <= task < len(self.heads):
            raise ValueError(f"tasks must lie in [0, {len(self.heads)}); got {task}. Add a head.")
        grid = self.embed.cells(images.shape)
        tokens, routings = self.embed(images), ()
        number = torch.full((len(images),), task if told is None else told, device=images.device)
        signal = Signal(grid=grid, task=number)
        for block in self.chain:
            tokens, found = block(tokens, signal)
            routings += found
        tokens = self.norm(tokens)
        return Output(self.heads[task](tokens, grid), routings, lambda: tokens)

    @property
    def chain(self) -> Sequence[Block | MixedBlock]:
        """The blocks in their order."""
        return cast("Sequence[Block | MixedBlock]", self.blocks)

    @property
    def mixtures(self) -> tuple[Mixture | QueryMixture, ...]:
        """All that decide, in the order of the output's decisions."""
        parts = [part for block in self.chain for part in (block.attention, block.layer)]
        return tuple(part for part in parts if isinstance(part, (Mixture, QueryMixture)))

    @property
    def feedforwards(self) -> tuple[Mixture, ...]:
        """The mixtures among them that stand behind attention."""
        return tuple(part for part in self.mixtures if isinstance(part, Mixture))

    def macs(self, output: Output, patches: int, tasks: Sequence[int]) -> float:
        """Multiply-accumulates of one item, the mean of those that gave this output, with the heads of these tasks.

        Args:
            output: of this network.
            patches: of each item.
            tasks: whose heads answer.
        """
        prefix, D = self.embed.prefix.shape
        T, left = patches + prefix, iter(output.routings)
        heads = [cast("Answer", self.heads[task]) for task in tasks]
        total = float(self.embed.macs(patches)) + sum(head.macs(patches) for head in heads)
        for block in self.chain:
            for part in (block.attention, block.layer):
                # The two kinds take different things.
                macs = cast("Callable[..., float]", part.macs)
                if isinstance(part, (Mixture, QueryMixture)):
                    routing = next(left)
                    total += macs(routing, (len(routing.scores), T, D)) / max(1, len(routing.scores))
                else:
                    total += macs(T)
        return total


def gated_by_task(width: int, hidden: int, *, tasks: int, experts: int, choices: int) -> Mixture:
    """Feed-forward experts for all tasks and a noisy router for each; the chosen probabilities are the weights."""

    def router() -> ComposedRouter:
        return ComposedRouter(Dot(width, experts), [Noise(1 / experts), Softmax()], partial(top_k, k=choices))

    return Mixture(ByTask([router() for _ in range(tasks)]), FeedForward(width, hidden, experts))


def gated_knowing_task(width: int, hidden: int, *, tasks: int, experts: int, choices: int) -> Mixture:
    """The same with one router, which adds a learned number for each task and expert to what it thinks of a token.

    That is a linear router of the token joined with any vector that depends on the task alone.
    """
    score = Sum([Dot(width, experts), TaskBias(tasks, experts)])
    router = ComposedRouter(score, [Noise(1 / experts), Softmax()], partial(top_k, k=choices))
    return Mixture(router, FeedForward(width, hidden, experts))


def partly_by_task(width: int, hidden: int, *, tasks: int, own: int) -> Mixture:
    """One network for all tasks but for the last `own` channels of its answer, which each task's expert computes."""
    router = ComposedRouter(Given(tasks), [Softmax()], partial(top_k, k=1))
    return Mixture(router, PartlyShared(width, hidden, tasks, own=own))


def grey_patches(width: int, side: int, patch: int, *, prefix: int = 0) -> PatchEmbed:
    """Square grey pictures of this side into patches, in pixels, behind so many prefix tokens."""
    grid = (side // patch, side // patch)
    return PatchEmbed(width=width, patch=patch, grid=grid, prefix=prefix, antialias=False, norm_eps=None, channels=1)


def every_second(depth: int, width: int, mixture: Callable[[], Mixture] | None) -> list[Mixture | Dense]:
    """Layers of so many blocks: every second one a mixture, if there are any, the others dense of four times D."""
    return [
        mixture() if mixture is not None and place % 2 else Dense(FeedForward(width, 4 * width, 1))
        for place in range(depth)
    ]


def for_canvases(
    width: int, side: int, layers: Sequence[Mixture | Dense], heads: Sequence[int] = range(4), *, patch: int
) -> Tasked:
    """A network for grey canvases and the tasks that any picture gives: its class of ten, its foreground, its edges
    and their directions.

    Args:
        width: D, a multiple of four heads.
        side: of a canvas in pixels, a multiple of the patch.
        layers: of the blocks.
        heads: which of the tasks.
        patch: its side in pixels.
    """
    made = [OfMean(width, 10), *(OfPixels(width, patch, channels) for channels in (1, 1, 2))]
    return Tasked(grey_patches(width, side, patch), stack(width, 4, layers), [made[task] for task in heads])


def modular_router(width: int, experts: int, choices: int) -> ComposedRouter:
    """A router of zeros with noise while it learns, whose gates are never zero."""
    score = Dot(width, experts)
    nn.init.zeros_(score.weight)
    return ComposedRouter(score, [Noise(1 / experts), Softmax(), Raised()], partial(top_k, k=choices))


def modular_block(width: int, *, tasks: int, experts: int, choices: int) -> MixedBlock:
    """A block whose attention and feed-forward part are experts, with a router for each task in front of both.

    The chosen heads and networks together are as wide as a dense block's: queries of 2 D, hidden layers of 4 D.
    """
    size, hidden = 2 * width // choices, 4 * width // choices
    first, second = (ByTask([modular_router(width, experts, choices) for _ in range(tasks)]) for _ in range(2))
    queries, outputs = Linear(width, experts, out=size), Linear(size, experts, out=width)
    attention = QueryMixture(width, first, queries, outputs, size=size)
    return MixedBlock(width, attention, Mixture(second, FeedForward(width, hidden, experts)))
