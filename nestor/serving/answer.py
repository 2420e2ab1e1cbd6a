"""What a request gets from the engine, and who is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.serving.network import Served
    from nestor.serving.scheduler import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a request gets.

    Attributes:
        logits: (B, classes).
        experts: which expert each patch took, (B, patches); None where nothing is routed.
        budget: that it was run at.
        batch: rows that ran together.
        queue: rows that still waited when they were taken.
        waited: seconds from arrival to the start of the batch.
        ran: seconds of the batch.
        version: of the network, counted from 1.
        served: the network itself.
    """

    logits: Tensor
    experts: Tensor | None
    budget: float
    batch: int
    queue: int
    waited: float
    ran: float
    version: int
    served: Served


class Watch(Protocol):
    """Whoever keeps count of what an engine does. Called by its threads."""

    def batch(self, batch: Batch, seconds: float) -> None:
        """A batch has ended."""

    def refused(self, kind: str) -> None:
        """A request got no result."""

    def revived(self) -> None:
        """The network was lost, and is back."""
