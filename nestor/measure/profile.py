"""Budget by budget: multiply-accumulates, quality and latency of a network, its rivals and the dense original."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nestor.data.scan import watch
from nestor.measure.clock import machine, race
from nestor.measure.cost import parameters, patches, weight_bytes
from nestor.measure.likeness import cosines
from nestor.measure.record import Latency, Network, Point, Profile, Quality
from nestor.measure.score import accuracy, auroc, balanced_accuracy
from nestor.measure.table import print_profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nestor.data import Pictures
    from nestor.measure.clock import Timing
    from nestor.measure.cost import Elastic
    from nestor.models.vit import ViT
    from nestor.types import Output

__all__ = ["Profile", "print_profile", "profile"]

Run = tuple[str, float]
DENSE: Run = ("dense", 1.0)


def profile(
    model: ViT,
    pictures: Pictures,
    *,
    budgets: Sequence[float] = (1.0, 0.8, 0.65, 0.5, 0.35),
    rivals: Mapping[str, Elastic] | None = None,
    dense: ViT | None = None,
    batches: Sequence[int] = (1, 16),
    precisions: Sequence[str] = ("float32", "bfloat16"),
    limit: int | None = None,
    rounds: int = 10,
    name: str = "nested",
) -> Profile:
    """Measure a nested network at several budgets, beside its rivals and the dense network.

    Budgets are fractions of each network's own full cost; ratios, speed-ups and efficiencies refer to `dense`. A rival
    is left out at budgets that it cannot reach or at which it does the same as at an earlier one. With labels and a
    head, qualities are scores; else the likeness of the tokens to those of `dense`.

    Args:
        model: the network, on any device.
        pictures: what quality is measured on, normalised as the network wants them.
        budgets: for `model` and its rivals.
        rivals: other networks, by name, that are dials too.
        dense: what to compare with; `model` at full budget when None.
        batches: of the latencies; none for no timing.
        precisions: of the latencies, `float32` or `bfloat16`.
        limit: at most so many pictures, with equal shares of the classes.
        rounds: how often each latency is taken.
        name: of the network in tables and curves.

    Raises:
        ValueError: when `model` cannot keep a budget, a name occurs twice, or the pictures do not fit the network.
    """
    pictures = pictures if limit is None else pictures.limit(limit)
    full: ViT = model if dense is None else dense
    networks: dict[str, Any] = {DENSE[0]: full, name: model, **(rivals or {})}
    if len(networks) < 2 + len(rivals or {}):
        raise ValueError(f"names must differ from each other, 'dense' and {name!r}; got {', '.join(rivals or ())}.")
    _require(budgets, batches, precisions)
    N = patches(model, pictures.size)
    for budget in budgets:
        model.plan(N, budget)
    plans = {DENSE: full.plan(N, 1.0)}
    for label in list(networks)[1:]:
        plans |= _plans(label, networks[label], N, budgets)
    # Random routers draw the same numbers in every profile, and the caller's generator is left as it was.
    with torch.random.fork_rng(), _evaluating(networks.values()):
        torch.manual_seed(0)
        qualities = _qualities(networks, plans, pictures)
        times = {
            (batch, precision): _times(networks, plans, pictures, batch, precision, rounds)
            for precision in precisions
            for batch in batches
        }
    whole = full.full_macs(N)

    def point(run: Run) -> Point:
        macs = networks[run[0]].macs(plans[run])
        latencies = [_latency(key, found[run], found[DENSE], macs / whole) for key, found in times.items()]
        return Point(budget=run[1], macs=macs, ratio=macs / whole, quality=qualities[run], latencies=tuple(latencies))

    made = [
        Network(
            name=label,
            parameters=parameters(network),
            weight_bytes=weight_bytes(network),
            points=tuple(point(run) for run in plans if run[0] == label),
        )
        for label, network in networks.items()
    ]
    return Profile(
        size=pictures.size, pictures=len(pictures), dense=made[0], networks=tuple(made[1:]), machine=machine()
    )


def _require(budgets: Sequence[float], batches: Sequence[int], precisions: Sequence[str]) -> None:
    if not budgets:
        raise ValueError("a profile needs at least one budget; got none.")
    if batches and min(batches) < 1:
        raise ValueError(f"batches must be at least 1; got {tuple(batches)}.")
    if unknown := [p for p in precisions if p not in ("float32", "bfloat16")]:
        raise ValueError(f"precisions must be among float32, bfloat16; got {', '.join(unknown)}.")


def _plans(label: str, network: Elastic, N: int, budgets: Sequence[float]) -> dict[Run, tuple[int, ...]]:
    plans: dict[Run, tuple[int, ...]] = {}
    for budget in sorted(set(budgets), reverse=True):
        try:
            plan = network.plan(N, budget)
        except ValueError:
            continue
        if plan not in plans.values():
            plans[label, budget] = plan
    return plans


@contextmanager
def _evaluating(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode for a while; rivals may share networks, so each part's own mode is put back."""
    modes = {part: part.training for network in networks for part in network.modules()}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.inference_mode()
def _qualities(networks: Mapping[str, Any], runs: Mapping[Run, object], pictures: Pictures) -> dict[Run, Quality]:
    labels = torch.tensor(pictures.labels)
    scored = bool((labels >= 0).all()) and all(network.settings.classes for network in networks.values())
    if scored and (most := int(labels.max())) >= (least := min(n.settings.classes for n in networks.values())):
        raise ValueError(f"pictures have labels up to {most}, and a head knows {least} classes. Fit a head to them.")
    found: dict[Run, list[Tensor]] = {run: [] for run in runs}
    loader = DataLoader(pictures, batch_size=16)  # pyright: ignore[reportArgumentType]
    for images, _ in watch(loader, total=len(loader), what="Measuring quality"):
        full: Output | None = None
        for label, budget in runs:
            output = _call(networks[label], images, budget)
            full = output if full is None else full
            prefix = networks[label].settings.prefix
            one = output.logits if scored else cosines(output.tokens, full.tokens, prefix)
            assert one is not None
            found[label, budget].append(one.float().cpu())
    read = partial(_scores, labels=labels) if scored else _means
    return {run: read(torch.cat(parts)) for run, parts in found.items()}


def _call(network: nn.Module, images: Tensor, budget: float) -> Output:
    like = next(network.parameters())
    return network(images.to(like.device, like.dtype), budget)


def _means(cosines: Tensor) -> Quality:
    *front, patch = cosines.double().mean(0).tolist()
    return Quality(class_cosine=front[0] if front else None, patch_cosine=patch)


def _scores(logits: Tensor, *, labels: Tensor) -> Quality:
    predicted = logits.argmax(1)
    binary = logits.shape[1] == 2 and len(labels.unique()) == 2
    return Quality(
        accuracy=accuracy(predicted, labels),
        balanced_accuracy=balanced_accuracy(predicted, labels),
        # The difference orders the pictures as the softmax does, without its rounding to 0 and 1.
        auroc=auroc(logits[:, 1] - logits[:, 0], labels) if binary else None,
    )


@torch.inference_mode()
def _times(
    networks: Mapping[str, Any],
    runs: Mapping[Run, object],
    pictures: Pictures,
    batch: int,
    precision: str,
    rounds: int,
) -> dict[Run, Timing]:
    kind = getattr(torch, precision)
    # One copy of all, so that networks which share weights go on sharing them.
    ready = nn.ModuleDict({str(i): n for i, n in enumerate(networks.values())})
    ready = deepcopy(ready).to(kind)
    copies = dict(zip(networks, ready.values(), strict=True))
    chosen = torch.stack([pictures[i % len(pictures)][0] for i in range(batch)])
    images = chosen.to(next(ready.parameters()).device, kind)

    def work(network: nn.Module, budget: float) -> object:
        output = network(images, budget)
        return output.tokens if output.logits is None else output.logits

    calls = {f"{label} {budget}": partial(work, copies[label], budget) for label, budget in runs}
    timings = race(calls, rounds=rounds, what=f"Timing {precision}, batch {batch}")
    return dict(zip(runs, timings.values(), strict=True))


def _latency(key: tuple[int, str], timing: Timing, dense: Timing, ratio: float) -> Latency:
    speed_up = dense.median_ms / timing.median_ms
    return Latency(batch=key[0], precision=key[1], timing=timing, speed_up=speed_up, efficiency=speed_up * ratio)
