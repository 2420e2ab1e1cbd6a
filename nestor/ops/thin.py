"""Fewer tokens on the way: the most alike of a band become one, after each quarter of the depth.

Tokens of different experts never merge, so that counts, and with them all shapes, stay fixed by the plan. In principal
components the channels at hand tell what is alike better than keys do (the published choice), and no block has to give
anything out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nestor.ops.tokens import match, mergeable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.ops.bands import Band


def stages(counts: Sequence[int], share: float, depth: int) -> tuple[tuple[int, ...], ...]:
    """How many tokens of each expert every block gets, the first all of them: (depth, E) whole numbers.

    In the last quarter of the blocks every expert has lost the same part of its tokens, `share` times the part of all
    tokens that is narrow, a third of it after each quarter. Where no token is narrow none is lost.

    Args:
        counts: tokens of each expert, the last at full width.
        share: in [0, 1).
        depth: number of blocks.
    """
    rate = share * sum(counts[:-1]) / max(1, sum(counts))
    found = [tuple(counts)]
    for block in range(1, depth):
        part = rate * (4 * block // depth) / 3
        wished = [n - int(n * part + 1e-9) for n in counts]
        least = [n - mergeable(n) for n in found[-1]]
        found.append(tuple(max(pair) for pair in zip(wished, least, strict=True)))
    return tuple(found)


def thin(band: Band, count: int, protected: int = 0) -> Band:
    """The band (B, n, d) with its most alike tokens merged until `count` are left.

    The first `protected` tokens take no part.

    Raises:
        ValueError: when fewer than half of the tokens would be left.
    """
    r = band.rows.shape[1] - count
    if r == 0:
        return band
    step = match(band.rows.detach(), r, protected)
    size = torch.ones_like(band.tail) if band.size is None else band.size
    rows, sizes = step.merge(band.rows, size)
    # The norm of merged channels that are not at hand is bounded by, and close to, the mean of the norms.
    tail, _ = step.merge(band.tail, size)
    gate = None if band.gate is None else step.merge(band.gate, size)[0]
    merge = step if band.merge is None else band.merge.then(step)
    return replace(band, rows=rows, tail=tail, gate=gate, size=sizes, merge=merge)


def spread(band: Band) -> Band:
    """The band with as many tokens as it had at first: each shows what became of it."""
    if band.merge is None:
        return band
    back = band.merge.unmerge
    gate = None if band.gate is None else back(band.gate)
    return replace(band, rows=back(band.rows), tail=back(band.tail), gate=gate, size=None, merge=None)


def sizes(bands: Sequence[Band]) -> Tensor | None:
    """(B, T, 1): how many tokens each token of the bands stands for; None where nothing was merged."""
    if all(band.size is None for band in bands):
        return None
    return torch.cat([torch.ones_like(band.tail) if band.size is None else band.size for band in bands], 1)
