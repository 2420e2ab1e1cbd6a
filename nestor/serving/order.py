"""What is asked for, and the answer that nothing can be given now."""

from __future__ import annotations

from dataclasses import dataclass

HIGH, NORMAL, LOW = 1, 2, 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """A request as the queue sees it: what it allows and when it is due, not what it carries. Each equals itself only.

    Attributes:
        number: different for each order.
        arrived: seconds on the server's clock.
        rows: pictures in it; they are run together.
        key: who asks; keys of one priority share the server evenly.
        priority: 1 (first), 2 or 3 (last).
        floor: no budget below this one.
        ceiling: no budget above this one; with floor = ceiling the budget is fixed.
        deadline: seconds from its arrival after which nobody waits for the answer; None for the policy's own patience.

    Raises:
        ValueError: a field lies outside its bounds.
    """

    number: int
    arrived: float
    rows: int = 1
    key: str = ""
    priority: int = NORMAL
    floor: float = 0.0
    ceiling: float = 1.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a request must hold at least 1 picture; got {self.rows}.")
        if self.priority not in (HIGH, NORMAL, LOW):
            raise ValueError(f"priority must be 1 (first), 2 or 3 (last); got {self.priority}.")
        if not 0 <= self.floor <= self.ceiling <= 1:
            raise ValueError(
                f"floor and ceiling of the budget must satisfy 0 <= floor <= ceiling <= 1; got {self.floor} and "
                f"{self.ceiling}."
            )
        if self.deadline is not None and not 0 < self.deadline < float("inf"):
            raise ValueError(f"a deadline must be above 0 and finite; got {self.deadline} s.")

    def allows(self, budget: float) -> bool:
        """Whether it may be run at this budget."""
        return self.floor <= budget <= self.ceiling

    def within(self, otherwise: float) -> float:
        """Its own deadline if it has one, else what is given, in seconds after its arrival."""
        return otherwise if self.deadline is None else self.deadline


class RefusedError(Exception):
    """The answer that a request gets instead of a result.

    Attributes:
        kind: `overloaded` or `displaced` (too much traffic), `expired` (nobody waits any more), `draining` (the server
            stops or has not started), `crashed` (the batch failed, or was lost), `restarting` (the network was lost and
            is being brought back) or `not_finite` (the network's answer is no number).
        after: seconds after which it is worth asking again; None where the same request would fail again.
    """

    def __init__(self, kind: str, message: str, *, after: float | None = None):
        super().__init__(message)
        self.kind, self.after = kind, after
