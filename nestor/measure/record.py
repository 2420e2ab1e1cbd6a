"""What a profile holds, as values that go to JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nestor.measure.clock import Timing

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good a network is on the pictures: scores where there are labels and a head, else likeness to the original.

    Attributes:
        accuracy, balanced_accuracy: in [0, 1].
        auroc: of the second class, with two classes only.
        class_cosine, patch_cosine: mean cosine to the full network's class token and patches.
    """

    accuracy: float | None = None
    balanced_accuracy: float | None = None
    auroc: float | None = None
    class_cosine: float | None = None
    patch_cosine: float | None = None

    @property
    def shown(self) -> dict[str, float]:
        """What is known, by name; the first is what curves show."""
        values = {
            "AUROC": self.auroc,
            "balanced accuracy": self.balanced_accuracy,
            "accuracy": self.accuracy,
            "class token cosine": self.class_cosine,
            "patch cosine": self.patch_cosine,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One call at a batch and a precision, timed in turns with the dense network.

    Attributes:
        timing: milliseconds of a whole batch.
        speed_up: the dense network's median over this one's.
        efficiency: speed-up over the reduction in multiply-accumulates; 1 when nothing is lost on the way.
    """

    batch: int
    precision: str
    timing: Timing
    speed_up: float
    efficiency: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """One network at one budget; `macs` of one picture, `ratio` of them to the dense network's."""

    budget: float
    macs: int
    ratio: float
    quality: Quality
    latencies: tuple[Latency, ...] = ()

    def latency(self, batch: int, precision: str) -> Latency | None:
        """The measurement at this batch and precision, if there is one."""
        return next((x for x in self.latencies if (x.batch, x.precision) == (batch, precision)), None)


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network at all of its budgets."""

    name: str
    parameters: int
    weight_bytes: int
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Budgets, what they cost and what they give: the dense network first, then the nested one, then its rivals.

    Attributes:
        size: side of the pictures in pixels.
        pictures: how many pictures the qualities come from.
        machine: what the latencies were taken on.
    """

    size: int
    pictures: int
    dense: Network
    networks: tuple[Network, ...]
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def measure(self) -> str:
        """Name of the quality that curves show."""
        return next(iter(self.dense.points[0].quality.shown), "")

    @property
    def settings_timed(self) -> tuple[tuple[int, str], ...]:
        """Batches and precisions that were timed."""
        return tuple((x.batch, x.precision) for x in self.dense.points[0].latencies)

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Read what `to_json` wrote.

        Raises:
            ValueError: when it is not a profile, or one of a newer format.
        """
        try:
            data = json.loads(text)
            version = data.pop("format")
            if version != FORMAT:
                raise ValueError(f"its format is {version}, and this version of Nestor reads format {FORMAT}")
            dense, *networks = [_network(n) for n in (data.pop("dense"), *data.pop("networks"))]
            return cls(**data, dense=dense, networks=tuple(networks))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is not a profile that can be read: {error}. Measure it again.") from error


def _network(data: dict[str, Any]) -> Network:
    return Network(**{**data, "points": tuple(_point(p) for p in data["points"])})


def _point(data: dict[str, Any]) -> Point:
    latencies = tuple(Latency(**x | {"timing": Timing(**x["timing"])}) for x in data["latencies"])
    return Point(**data | {"quality": Quality(**data["quality"]), "latencies": latencies})
