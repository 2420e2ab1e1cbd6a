"""The one training loop: any budget, one process or many, interrupted or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from nestor.training.checks import check
from nestor.training.run import Run
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nestor.data import Examples
    from nestor.measure.trace import Watch
    from nestor.models.adopted import Adopted
    from nestor.models.composed import Composed
    from nestor.models.video import Network

Net = TypeVar("Net", bound="Network | Composed | Adopted")


def fit(
    model: Net,
    pictures: Examples,
    settings: Fit | None = None,
    *,
    teacher: Network | None = None,
    out: str | Path | None = None,
    validate: Examples | None = None,
    tensorboard: str | Path | None = None,
    workers: int = 0,
    cpu: bool = False,
    watch: Watch | None = None,
) -> Net:
    """Train a copy of a network over the budgets that the settings draw, and return it.

    With `out`, the run is resumed where a checkpoint of the same run lies there, with the same final weights, bit for
    bit on a CPU, as without the interruption; in the end `out` holds the network (nestor.models.saved) and fit.json.
    Where it holds both already, of the same run from the same weights, nothing is trained again.
    Works alone and under `accelerate launch` or `torchrun`, where the processes share each batch.

    Args:
        model: stays as it is; a ViT, a rival that wraps one and is run as it runs (nestor.models.merged, pruned and
            uniform), a VideoViT with clips in place of pictures, or a network of another library with mixtures in it
            (nestor.models.adopted).
        pictures: labelled, unless a teacher teaches.
        settings: how to train; Fit() unless given.
        teacher: another network, whose full-budget tokens and logits are to be matched.
        out: folder for checkpoints and the result; None to keep nothing on disk.
        validate: labelled pictures whose accuracy at a few budgets is noted after each epoch.
        tensorboard: folder for TensorBoard's logs.
        workers: processes that decode pictures; 0 decodes between the steps.
        cpu: stay on the CPU where there is an accelerator.
        watch: sees every step's decisions, those of all processes, and warns of experts that get nothing; what they
            got is noted after each epoch and shown in TensorBoard. For routers that choose freely; a resumed run
            begins to watch anew.

    Raises:
        ValueError: network, pictures, teacher and settings do not fit together, or a checkpoint in `out` belongs to
            another run.
        FloatingPointError: the loss is no longer a finite number; nothing of that step is kept.
        KeyboardInterrupt: after Ctrl-C or a request to terminate, at the end of the step under way and with a
            checkpoint written.
        ImportError: accelerate or tensorboard is missing.
        OSError: `out` cannot be written.
    """
    settings = settings or Fit()
    network = cast("Network", model)
    check(network, pictures, settings, teacher, validate)
    accelerator = _accelerator(cpu)
    folder = None if out is None else Path(out)
    run = Run(network, pictures, settings, teacher, folder, validate, accelerator, watch)
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        run.train(None if tensorboard is None else Path(tensorboard), workers)
    return cast("Net", run.student.to(next(model.parameters()).device).eval())


def _accelerator(cpu: bool) -> Accelerator:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise ImportError("Training needs accelerate. Install it: pip install 'nestor[train]'.") from error
    # What a narrow budget does not use has no gradient in that step. Precision is ours to set, from step to step.
    return Accelerator(
        cpu=cpu, mixed_precision="no", kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )
