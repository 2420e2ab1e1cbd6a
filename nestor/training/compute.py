"""What training costs, so that networks can be compared that were trained at equal compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.training.checks import sandwiched

if TYPE_CHECKING:
    from nestor.models.video import Network
    from nestor.training.settings import Fit


def step_macs(model: Network, patches: int, settings: Fit, step: int) -> int:
    """Forward multiply-accumulates of one picture in one step without a teacher; the backward pass takes twice as many.

    Args:
        model: any network that can be fitted.
        patches: of a picture, or of one index of a clip.
        settings: how it is trained.
        step: counted from 0.
    """
    budget = settings.budgets.draw(settings.seed, step, model.least_budget(patches))
    beside = model.full_macs(patches) if sandwiched(model, settings, None) and budget < 1 else 0
    return beside + model.macs(model.plan(patches, budget))


def affordable(model: Network, patches: int, settings: Fit, macs: float) -> int:
    """How many steps, one picture each, cost no more than this many forward multiply-accumulates: a `Fit.steps`.

    Raises:
        ValueError: not even one step is affordable.
    """
    step, spent = 0, step_macs(model, patches, settings, 0)
    if spent > macs:
        raise ValueError(f"one step costs {spent:,} multiply-accumulates a picture; got {macs:,.0f}. Raise it.")
    while spent <= macs:
        step += 1
        spent += step_macs(model, patches, settings, step)
    return step
