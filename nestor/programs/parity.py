"""Whether a program that was written says what the network says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nestor.models.vit import ViT
    from nestor.programs.fixed import Fixed

LIMIT = 1e-4
BATCHES = (1, 3)
_AMONG = 12


def check(program: Fixed, run: Callable[[Tensor], Sequence[Tensor]], what: str, exact: Fixed | None = None) -> float:
    """Compare what a written program gives with what the network gives, for one picture and for three at once.

    Args:
        program: the network.
        run: pictures, as the program takes them, to its outputs.
        what: the program's name for the error.
        exact: the network before its products were rounded to eight bits. A number between two steps may go to either,
            and what follows differs; so the written program must come about as close to this network as ours does.

    Returns:
        The largest difference of any output, as a fraction of that output's largest value.

    Raises:
        ValueError: when that is more than 1e-4, or more than twice what rounding costs where there is `exact`.
    """
    images = pictures(program, max(BATCHES))
    worst = 0.0
    for batch in BATCHES:
        with torch.no_grad():
            ours = program(images[:batch])
            wanted = ours if exact is None else exact(images[:batch])
        for name, own, aim, theirs in zip(program.names, ours, wanted, run(images[:batch]), strict=True):
            limit = LIMIT if exact is None else LIMIT + 2 * _difference(aim, own)
            difference = _difference(aim, theirs)
            if not difference <= limit:
                raise ValueError(
                    f"{what} must give what the network gives, to {limit:.2g} of the largest value; its {name} for a "
                    f"batch of {batch} differ by {difference:.3g}. Nothing was written; try the other format, or other "
                    "versions of torch and onnxruntime."
                )
            worst = max(worst, difference)
    return worst


def pictures(program: Fixed, count: int) -> Tensor:
    """Pictures (count, C, H, W) as a program takes them, always the same.

    Two patches that the router finds almost equally good may swap places by rounding alone, which is no fault of the
    program. So these are, among several, the pictures whose patches it tells apart most clearly.
    """
    s, size = program.model.settings, program.interface.size
    drawn = torch.Generator().manual_seed(0)
    # Shades that vary slowly, and a texture that is strong here and faint there: patches shall differ.
    shades, strength = (
        F.interpolate(torch.randn(_AMONG, s.channels, 5, 5, generator=drawn), (size, size), mode="bilinear")
        for _ in range(2)
    )
    images = shades + strength * torch.randn(shades.shape, generator=drawn)
    if program.interface.inputs == "pixels":
        images = ((images * program.std + program.mean) * 255).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        clear = clearness(program.model, program.prepared(images), program.counts)
    return images[clear.argsort(descending=True, stable=True)[:count]]


def clearness(model: ViT, images: Tensor, counts: tuple[int, ...]) -> Tensor:
    """(B,): by how much the router prefers the last patch that an expert takes to the first that it leaves, at least.

    Args:
        model: the network.
        images: (B, C, H, W), normalised.
        counts: how many patches of a picture each expert takes.
    """
    routing = model.route(model.embed(images), counts, model.cells(images.shape))
    least = images.new_full((len(images),), torch.inf)
    if routing is None:
        return least
    index = routing.index.squeeze(-1)
    for expert in range(1, len(counts)):
        score = routing.scores[..., expert]
        taken = score.masked_fill(index != expert, torch.inf).amin(1)
        left = score.masked_fill(index >= expert, -torch.inf).amax(1)
        least = torch.minimum(least, taken - left)
    return least


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    apart = (ours.double() - theirs.double()).abs().max()
    return float(apart / ours.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny))
