"""A network at one budget and one size of picture, which is what other runtimes can be given."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from nestor import __version__
from nestor.models.vit import ViT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.export import ExportedProgram

    Rounding = Callable[[ViT], ViT]

INPUTS = ("normalised", "pixels")
OUTPUTS = ("logits", "class_token", "tokens", "experts")


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a program takes and gives.

    Attributes:
        size: side of the pictures in pixels.
        inputs: `normalised`, single precision as the network itself takes them; or `pixels`, whole numbers from 0 to
            255 (uint8), which the program normalises. Both (B, C, size, size).
        outputs: any of `logits` (B, classes), `class_token` (B, D), `tokens` (B, T, D) and `experts` (B, patches), the
            expert that each patch took, as whole numbers, in the order wanted; None for the logits, without a head for
            the class token, and without one of these for the tokens.

    Raises:
        ValueError: when there are no such inputs or outputs.
    """

    size: int
    inputs: str = "normalised"
    outputs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.inputs not in INPUTS:
            raise ValueError(f"inputs must be {' or '.join(INPUTS)}; got {self.inputs!r}.")
        wanted = OUTPUTS[:1] if self.outputs is None else self.outputs
        if not wanted or not set(wanted) <= set(OUTPUTS) or len(set(wanted)) < len(wanted):
            raise ValueError(
                f"outputs must be among {', '.join(OUTPUTS)}, each at most once; got {', '.join(wanted) or 'none'}."
            )


@final
class Fixed(nn.Module):
    """A network at one budget and one size: pictures in, a tuple of tensors out.

    It computes in single precision on the CPU and shares the network's weights where these are so already. Positions
    are resized once instead of in every pass.

    Args:
        model: the network; it is not changed.
        budget: as in ViT.
        interface: what goes in and comes out.
        rounding: a network to one whose blocks multiply eight-bit numbers (`nestor.surgery.quantize.portable`); None to
            leave it as it is.

    Attributes:
        names: of the outputs.

    Raises:
        ValueError: when budget, size or outputs do not fit the network, or its router draws at random.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ViT, budget: float, interface: Interface, rounding: Rounding | None = None):
        super().__init__()
        s = model.settings
        if "uniform" in s.scores:
            raise ValueError("a router that draws at random cannot be exported; scores hold 'uniform'. Choose another.")
        self.interface, self.budget, self.names = interface, float(budget), _outputs(model, interface)
        rows, columns = model.cells((1, s.channels, interface.size, interface.size))
        self.counts = model.plan(rows * columns, budget)
        resized = _resized(model, interface.size)
        self.rounded = rounding is not None
        self.model = resized if rounding is None else rounding(resized)
        for name, values in (("mean", s.mean), ("std", s.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> what `names` says, in this order."""
        bands, order, routings = self.model.encode(self.prepared(images), self.counts)
        output = self.model.finish(bands, order, routings)
        given: list[Tensor] = []
        for name in self.names:
            if name == "logits" and output.logits is not None:
                given.append(output.logits)
            elif name == "class_token":
                given.append(self.model.readout.front(bands, 1)[:, 0])
            elif name == "experts":
                given.append(self._experts(images, routings))
            else:
                given.append(output.tokens)
        return tuple(given)

    def _experts(self, images: Tensor, routings: Sequence[Any]) -> Tensor:
        if routings:
            return routings[0].index[..., 0].to(torch.int32)
        # At full budget nothing is decided: all patches take the last.
        patches, last = sum(self.counts), self.model.settings.nest.experts - 1
        return images.new_full((images.shape[0], patches), last, dtype=torch.int32)

    def prepared(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) as they are put in -> as the network takes them."""
        return (images.float() / 255 - self.mean) / self.std if self.interface.inputs == "pixels" else images

    def facts(self) -> dict[str, str]:
        """What a file says of itself, in strings: `labels`, `mean`, `std`, `counts`, `widths` and `cells` are JSON."""
        s, size = self.model.settings, self.interface.size
        cells = self.model.cells((1, s.channels, size, size))
        lists = {"labels": s.labels, "mean": s.mean, "std": s.std, "widths": s.nest.widths}
        lists |= {"counts": self.counts, "cells": cells}
        single = {
            "version": __version__,
            "budget": repr(self.budget),
            "size": str(size),
            "classes": str(s.classes),
            "inputs": self.interface.inputs,
            "products": "int8" if self.rounded else "float32",
            "macs": str(self.model.macs(self.counts)),
        }
        return {f"nestor.{name}": text for name, text in single.items()} | {
            f"nestor.{name}": json.dumps(values) for name, values in lists.items()
        }


def capture(program: Fixed) -> ExportedProgram:
    """The program as a graph of torch's operators, for any number of pictures from 1 on."""
    s, interface = program.model.settings, program.interface
    kind = torch.uint8 if interface.inputs == "pixels" else torch.float32
    # Two, because a graph that was captured with one picture would be taken to be about one.
    example = torch.zeros(2, s.channels, interface.size, interface.size, dtype=kind)
    with torch.no_grad():
        return torch.export.export(program, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _outputs(model: ViT, interface: Interface) -> tuple[str, ...]:
    missing = {"logits": model.head is None, "class_token": model.settings.prefix == 0}
    if interface.outputs is None:
        return (next(name for name in OUTPUTS if not missing.get(name)),)
    for name in interface.outputs:
        if missing.get(name):
            part = "head" if name == "logits" else "class token"
            raise ValueError(f"the output {name} needs a network with a {part}; this one has none. Leave it out.")
    return interface.outputs


def _resized(model: ViT, size: int) -> ViT:
    """The network over the same weights, with positions for pictures of this size."""
    s = model.settings
    grid = model.cells((1, s.channels, size, size))
    weights = model.state_dict() | {"embed.position": model.embed.positions(*grid).unflatten(0, grid)}
    with torch.device("meta"):
        new = ViT(replace(s, grid=grid, nominal=size))
    new.load_state_dict({name: _single(tensor) for name, tensor in weights.items()}, assign=True)
    return new.requires_grad_(False).eval()


def _single(tensor: Tensor) -> Tensor:
    """The tensor in single precision on the CPU, alone in its memory as what is written must be; itself if it is so."""
    plain = tensor.detach().to("cpu", torch.float32).contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()
