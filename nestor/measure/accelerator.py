"""What a network takes on an accelerator with its own kernels: cycles, and bytes that cross its memory's bus.

A simulation of the published kernels by counting, driven by decisions that a network took about real pictures. There is
one linear unit for all layers, of multipliers in tiles, and one attention kernel. Weights of the next expert are loaded
while this one works. Clock rates, stalls and energy are not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from nestor.types import NOBODY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nestor.types import Sparse

_MULTIPLIER = 16
"""Bits that one multiplier takes; of twice as many it takes four."""


class Work(NamedTuple):
    """Of one item: cycles, bytes of weights and tokens read or written, and how often experts are loaded."""

    cycles: int
    weights: int
    tokens: int
    loads: int = 0


class Step(NamedTuple):
    """One step of the attention kernel: what it reads, and which queries meet the key."""

    query: int | None
    key: int
    pairs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The shape of an encoder, for one item.

    Attributes:
        tokens: N.
        width: D.
        depth: blocks, all with attention.
        dense: (inward, outward) of each linear map of a block without experts; blocks with experts are the others.
        expert: the same of one expert.
    """

    tokens: int
    width: int
    depth: int
    dense: tuple[tuple[int, int], ...]
    expert: tuple[tuple[int, int], ...]

    def attention(self, array: Array) -> int:
        """Cycles of all attention, its linear maps left out."""
        return self.depth * array.attention(self.tokens, self.width)

    def linear(self, array: Array, queues: Sequence[Sequence[int]]) -> Work:
        """What all linear maps take, experts by queues of their tokens, one for each block that has them."""
        D, N = self.width, self.tokens
        maps = self.depth * [(D, 3 * D), (D, D)] + (self.depth - len(queues)) * list(self.dense)
        parts = [by_expert([N], [each], array) for each in maps]
        return total([*parts, *(by_expert(queue, self.expert, array) for queue in queues)])


@dataclass(frozen=True, kw_only=True)
class Array:
    """How an accelerator is laid out.

    Attributes:
        tile_in, tile_out: rows and columns of a unit's multipliers.
        units: each works on tokens of its own.
        parallel: P, queries that the attention kernel holds.
        lanes: channels of a query and a key that it multiplies in one cycle.
        weight_bits, token_bits: of the numbers.
        bus: bytes that come from memory in one cycle.

    Raises:
        ValueError: when a number is below 1.
    """

    tile_in: int = 16
    tile_out: int = 16
    units: int = 1
    parallel: int = 4
    lanes: int = 16
    weight_bits: int = 16
    token_bits: int = 32
    bus: int = 64

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise ValueError(f"every number of an accelerator must be at least 1; got {self}.")

    @property
    def multipliers(self) -> int:
        """Of all units and of the attention kernel."""
        each = max(1, self.weight_bits // _MULTIPLIER) ** 2
        return self.tile_in * self.tile_out * self.units * each + self.parallel * self.lanes

    def memory(self, width: int) -> int:
        """Bytes on the chip: two tiles of weights, each unit's tiles of tokens, the queries held and their answers."""
        tiles = 2 * self.tile_in * self.tile_out * self.weight_bits
        return (
            tiles + (self.units * (self.tile_in + self.tile_out) + 2 * self.parallel * width) * self.token_bits
        ) // 8

    def linear(self, rows: int, inward: int, outward: int) -> int:
        """Cycles of one linear map of so many tokens, which are dealt to the units in turn."""
        return -(-rows // self.units) * -(-inward // self.tile_in) * -(-outward // self.tile_out)

    def attention(self, tokens: int, width: int) -> int:
        """Cycles of the attention of one item: each step multiplies all channels of a query and a key."""
        return attention_steps(tokens, self.parallel) * -(-width // self.lanes)

    def loading(self, maps: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Cycles and bytes of reading the weights of these maps, (inward, outward) each."""
        size = sum(a * b for a, b in maps) * self.weight_bits // 8
        return -(-size // self.bus), size


def schedule(tokens: int, parallel: int) -> Iterator[Step]:
    """The attention kernel's steps: a block of queries shares a stream of keys, into which one enters in each step.

    A query that entered late meets the keys that it missed at the end of its block, when they come once more. So a step
    reads one key and at most one query, however many are held.

    Args:
        tokens: N of an item.
        parallel: P, the queries of a block.

    Raises:
        ValueError: when there is no token or no query is held.
    """
    if tokens < 1 or parallel < 1:
        raise ValueError(f"there must be tokens, and queries held; got {tokens} and {parallel}.")
    for first in range(0, tokens, parallel):
        held = min(parallel, tokens - first)
        for step in range(tokens + held - 1):
            met = tuple(first + p for p in range(held) if p <= step < p + tokens)
            yield Step(first + step if step < held else None, step % tokens, met)


def attention_steps(tokens: int, parallel: int) -> int:
    """How many steps that takes: N (N + P - 1) / P where P divides N."""
    blocks, rest = divmod(tokens, parallel)
    return blocks * (tokens + parallel - 1) + (tokens + rest - 1 if rest else 0)


def queues(routing: Sparse) -> list[list[int]]:
    """For each item, how many of its choices every expert was given."""
    E = routing.scores.shape[-1]
    return [each[each != NOBODY].bincount(minlength=E).tolist() for each in routing.index.flatten(1)]


def total(parts: Sequence[Work]) -> Work:
    """All of it, one after the other."""
    return Work(*(sum(values) for values in zip(*parts, strict=True))) if parts else Work(0, 0, 0)


def by_expert(counts: Sequence[int], maps: Sequence[tuple[int, int]], array: Array) -> Work:
    """Each expert that has tokens is loaded once and works off its queue.

    Args:
        counts: tokens of each expert.
        maps: (inward, outward) of each linear map of an expert.
        array: the accelerator.
    """
    busy = [sum(array.linear(count, a, b) for a, b in maps) for count in counts if count]
    return _worked(busy, sum(counts), maps, array)


def by_token(index: Sequence[Sequence[int]], maps: Sequence[tuple[int, int]], array: Array) -> Work:
    """Tokens one after the other, and for each of their choices the expert is loaded.

    Args:
        index: the experts of each token; -1 for nobody.
        maps: as above.
        array: the accelerator.
    """
    chosen = sum(expert >= 0 for experts in index for expert in experts)
    return _worked([sum(array.linear(1, a, b) for a, b in maps)] * chosen, chosen, maps, array)


def compared(routing: Sparse, maps: Sequence[tuple[int, int]], array: Array) -> dict[str, list[float]]:
    """What a layer's decision takes, for each item: by queues and in the order of tokens, and experts with tokens."""
    found: dict[str, list[float]] = {}
    for queue, index in zip(queues(routing), routing.index.tolist(), strict=True):
        for order, work in (("queues", by_expert(queue, maps, array)), ("tokens", by_token(index, maps, array))):
            for name, value in work._asdict().items():
                found.setdefault(f"{name}, {order}", []).append(value)
        found.setdefault("experts with tokens", []).append(len({e for experts in index for e in experts} - {NOBODY}))
    return found


def pinned(counts: Sequence[int], maps: Sequence[tuple[int, int]], array: Array) -> int:
    """Cycles where every expert has a unit of its own, dealt in turn, and a unit with many tokens is waited for."""
    queues = [sum(counts[unit :: array.units]) for unit in range(array.units)]
    each = sum(-(-a // array.tile_in) * -(-b // array.tile_out) for a, b in maps)
    return max(queues) * each


def dealt(counts: Sequence[int], maps: Sequence[tuple[int, int]], array: Array) -> int:
    """Cycles where the tokens of one expert after the other are dealt to all units in turn."""
    return sum(array.linear(count, a, b) for count in counts for a, b in maps)


def _worked(busy: Sequence[int], rows: int, maps: Sequence[tuple[int, int]], array: Array) -> Work:
    if not busy:
        return Work(0, 0, 0)
    cycles, size = array.loading(maps)
    # While one works, the next is loaded.
    spent = cycles + sum(max(work, cycles) for work, _ in pairwise(busy)) + busy[-1]
    width, out = maps[0][0], maps[-1][1]
    return Work(spent, size * len(busy), rows * (width + out) * array.token_bits // 8, len(busy))
