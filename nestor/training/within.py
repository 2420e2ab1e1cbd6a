"""Training for as long as an allowance of compute lasts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nestor.training.compute import affordable, step_macs

if TYPE_CHECKING:
    from nestor.models.video import Network
    from nestor.training.settings import Fit


def within(model: Network, patches: int, settings: Fit, macs: float) -> tuple[Fit, float]:
    """The same settings with as many steps as are affordable, and the share of the allowance that they take.

    Args:
        model: any network that can be fitted.
        patches: of a picture, or of one index of a clip.
        settings: how it is trained.
        macs: forward multiply-accumulates allowed, one picture a step.

    Raises:
        ValueError: not even one step is affordable.
    """
    steps = affordable(model, patches, settings, macs)
    spent = sum(step_macs(model, patches, settings, step) for step in range(steps))
    return replace(settings, steps=steps), spent / macs
