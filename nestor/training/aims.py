"""Training towards a loss of one's own, in the one loop: what labels and balance alone do not say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.layers.together import dense
from nestor.training.checks import check
from nestor.training.losses import PARTS, divergence
from nestor.training.run import Run
from nestor.training.schedule import Fixed
from nestor.types import Signal, Sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nestor.data import Pictures
    from nestor.models.composed import Composed
    from nestor.training.settings import Fit
    from nestor.types import Output


class Aim(Protocol):
    """What a step minimises: weighted parts of the loss, by names in `nestor.training.losses.PARTS`."""

    def __call__(self, model: Composed, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """(B, 3, H, W) and (B,) -> parts that are added."""
        ...


@dataclass(frozen=True, kw_only=True)
class Priced:
    """Cross-entropy and losses of the decisions that need more than a decision, such as the experts' costs.

    Attributes:
        losses: pairs of a weight and a function of one decision; each the mean over the sparse decisions.
    """

    losses: tuple[tuple[float, Callable[[Sparse], Tensor]], ...] = ()

    def __call__(self, model: Composed, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) and (B,) -> parts that are added."""
        output = model(images)
        sparse = [routing for routing in output.routings if isinstance(routing, Sparse)]
        each = [weight * loss(routing) for weight, loss in self.losses for routing in sparse]
        parts = {"labels": F.cross_entropy(_logits(output), labels)}
        return parts | ({"balance": torch.stack(each).sum() / len(sparse)} if each else {})


@dataclass(frozen=True, kw_only=True)
class Skipping:
    """A network that skips tokens and the same one that skips none learn together, the second teaching the first (DyT).

    The share of tokens that expert 0 serves, over the whole batch and all sparse decisions at once, is drawn towards
    `rate`, so that layers and pictures may differ.

    Attributes:
        rate: share of the tokens that are not skipped.
        weight: of the squared distance from it.

    Raises:
        ValueError: when the rate does not lie in [0, 1] or the weight is negative.
    """

    rate: float = 0.5
    weight: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1 or self.weight < 0:
            raise ValueError(
                f"a rate must lie in [0, 1] and its weight not be negative; got {self.rate} and {self.weight}. "
                "0.5 and 2 are published."
            )

    def __call__(self, model: Composed, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) and (B,) -> parts that are added."""
        some = model(images)
        rows, columns = model.cells(images.shape)
        all_of_them = Signal(counts=(rows * columns + model.settings.prefix, 0))
        whole = _logits(model.told(images, all_of_them))
        kept = kept_share(some)
        return {
            "labels": F.cross_entropy(_logits(some), labels) + F.cross_entropy(whole, labels),
            "logits": divergence(_logits(some), whole.detach(), 1.0),
            "balance": self.weight * (kept - self.rate).square(),
        }


def kept_share(output: Output) -> Tensor:
    """The share of all tokens that expert 0 serves, mean over all sparse decisions between two experts; a scalar.

    Raises:
        ValueError: when there is no such decision.
    """
    two = [dense(r)[..., 0] for r in output.routings if isinstance(r, Sparse) and r.scores.shape[-1] == 2]
    if not two:
        raise ValueError("the share of kept tokens needs a decision between two experts; got none.")
    return torch.stack(two).mean()


def pursue(model: Composed, pictures: Pictures, how: Fit, aim: Aim, seed: int) -> Composed:
    """Train a copy of a network towards an aim with this seed, and return it.

    Args:
        model: stays as it is.
        pictures: labelled.
        how: losses and budgets in it are ignored.
        aim: what each step minimises.
        seed: of data order and of what is random in the network.

    Raises:
        ValueError: network and pictures do not fit together.
        ImportError: accelerate is missing.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("Training needs accelerate. Install it: pip install 'nestor[train]'.") from error
    settings = replace(how, seed=seed, balance=(), sandwich=False, budgets=Fixed())
    network: Any = model
    check(network, pictures, settings, None, None)
    accelerator = Accelerator(mixed_precision="no")
    run = Run(network, pictures, settings, None, None, None, accelerator)
    run.objective = accelerator.prepare(_Pursuit(cast("Composed", run.student), aim))
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        run.train(None, 0)
    return cast("Any", run.student).to(next(model.parameters()).device).eval()


@final
class _Pursuit(nn.Module):
    """A network with its aim, called as the loop calls a loss."""

    def __init__(self, model: Composed, aim: Aim):
        super().__init__()
        self.model, self.aim = model, aim

    def forward(self, images: Tensor, labels: Tensor, *others: object) -> tuple[Tensor, Tensor]:
        found = self.aim(self.model, images, labels)
        zero = torch.zeros((), device=labels.device)
        parts = torch.stack([found.get(name, zero).float() for name in PARTS])
        return parts.sum(), parts.detach()


def _logits(output: Output) -> Tensor:
    assert output.logits is not None
    return output.logits.float()
