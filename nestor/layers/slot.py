"""A mixture in the place of a part of a foreign network, and how its decisions come out of there.

A foreign block gives its feed-forward part one tensor and wants one tensor back: neither a signal nor a decision can
pass through it. So whoever calls the network opens a record around the call, and every slot notes there what it
decided:

    with recording(Signal(mask=mask)) as record:
        answer = model(images)
    loss = task(answer) + balance(record.routings)

The record belongs to the caller. It is found through a context variable, of which every thread and every task has its
own, so that two calls at a time never mix; slots keep nothing, and without a record nothing is noted. Decisions are
part of the call's own graph, hence:

- Gradient checkpointing must not be re-entrant, for a re-entrant one hides the graph; balance losses refuse decisions
  without gradient. Recomputation during the backward pass notes nothing. It sees the signal if `remembered` is the
  checkpoint's `context_fn`.
- Under DistributedDataParallel open the record around the wrapped network. DataParallel runs its copies in threads of
  their own, which no record reaches.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, final

from torch import Tensor, nn

from nestor.types import Signal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nestor.layers.mixture import Mixture
    from nestor.types import Routing


@final
class Record:
    """What the mixtures of one call decided, in the order in which they were asked.

    Args:
        signal: what their routers may consult.
        replay: decisions to repeat instead of making new ones: for each slot's name, one for each call.
        muted: note nothing.
    """

    def __init__(
        self,
        signal: Signal | None = None,
        replay: Mapping[str, Sequence[Routing]] | None = None,
        muted: bool = False,
    ):
        self.signal = Signal() if signal is None else signal
        self.replay, self.muted = replay, muted
        self._left = {name: iter(decisions) for name, decisions in (replay or {}).items()}
        self._noted: list[tuple[str, Routing]] = []

    @property
    def routings(self) -> tuple[Routing, ...]:
        """All decisions, first asked first."""
        return tuple(routing for _, routing in self._noted)

    @property
    def by_name(self) -> dict[str, tuple[Routing, ...]]:
        """The decisions of each slot."""
        names = dict.fromkeys(name for name, _ in self._noted)
        return {name: tuple(routing for other, routing in self._noted if other == name) for name in names}

    def note(self, name: str, routings: Sequence[Routing]) -> None:
        """Keep what a slot decided."""
        if not self.muted:
            self._noted += [(name, routing) for routing in routings]

    def given(self, name: str) -> Routing | None:
        """The decision that a slot is to repeat; None where it decides itself.

        Raises:
            ValueError: when decisions are repeated and there is none left for this slot.
        """
        if self.replay is None:
            return None
        routing = next(self._left.get(name, iter(())), None)
        if routing is None:
            raise ValueError(
                f"a replay needs one decision for each call of each slot; got none left for {name!r}, only for "
                f"{', '.join(self.replay) or 'nobody'}. Record it from the same network."
            )
        return routing


_OPEN: ContextVar[Record | None] = ContextVar("nestor_record", default=None)


@contextmanager
def recording(signal: Signal | None = None, replay: Mapping[str, Sequence[Routing]] | None = None) -> Iterator[Record]:
    """Open a record for the calls in this block; leave it before the backward pass.

    Args:
        signal: what the routers of all slots may consult.
        replay: as `Record.by_name` gave it; slots then repeat these decisions.
    """
    with _opened(Record(signal, replay)) as record:
        yield record


def remembered() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """For a checkpoint's `context_fn`: what is recomputed sees the signal of the first time and notes nothing.

    In transformers: `model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": remembered})`.
    """
    record = _OPEN.get()
    if record is None:
        return nullcontext(), nullcontext()
    return nullcontext(), _opened(Record(record.signal, record.replay, muted=True))


@final
class Slot(nn.Module):
    """A mixture that takes one tensor and gives one, and notes its decision in the record that is open, if any.

    Args:
        name: under which decisions are noted.
        layer: the mixture.
    """

    def __init__(self, name: str, layer: Mixture):
        super().__init__()
        self.name, self.layer = name, layer

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., D'): the first of several dimensions counts items, all others tokens."""
        record = _OPEN.get()
        signal = Signal() if record is None else record.signal
        flat = tokens.unsqueeze(0) if tokens.ndim == 2 else tokens.flatten(1, -2)
        given = None if record is None else record.given(self.name)
        if given is None:
            answer, routings = self.layer(flat, signal)
        else:
            answer, routings = self.layer.answer(flat, given, signal.mask), (given,)
        if record is not None:
            record.note(self.name, routings)
        return answer.reshape(*tokens.shape[:-1], answer.shape[-1])


@contextmanager
def _opened(record: Record) -> Iterator[Record]:
    token = _OPEN.set(record)
    try:
        yield record
    finally:
        _OPEN.reset(token)
