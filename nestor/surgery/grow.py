"""One network becomes several experts: by copying it, by cutting it up, or by adding to experts that are there."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.experts.feedforward import FeedForward
from nestor.experts.joined import Joined
from nestor.experts.stacked import select
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.refine import unweighted
from nestor.routing.router import ComposedRouter
from nestor.routing.several import ByTask, Renamed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.composed import Composed
    from nestor.types import Experts, Router

_STEPS = 10


def upcycle(dense: FeedForward, experts: int, *, noise: float = 0.0, seed: int = 0) -> FeedForward:
    """As many copies of one network (sparse upcycling).

    A mixture of equal copies whose weights add up to one is the network itself, whatever its router does.

    Args:
        dense: one expert, for instance from `nestor.surgery.dense`.
        experts: how many copies.
        noise: standard deviation of what is added to each matrix, as a share of its own root mean square.
        seed: of the noise.

    Raises:
        ValueError: when there is not one expert to copy, or a number makes no sense.
    """
    _require_one(dense)
    if experts < 1 or not noise >= 0:
        raise ValueError(f"experts must be at least 1 and noise not negative; got {experts} and {noise}.")
    made = select(dense, (0,) * experts)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in (made.inward, made.outward) if noise else ():
            drawn = torch.randn(matrix.shape, generator=generator).to(matrix)
            matrix.add_(drawn * noise * matrix.square().mean().sqrt())
    return made


def keys(dense: FeedForward) -> Tensor:
    """(H, D): what each hidden unit of one network looks for; of a gated network the gate's rows."""
    _require_one(dense)
    return dense.inward[0].detach().unflatten(0, (dense.activation.fan, -1))[0]


def clusters(vectors: Tensor, groups: int, *, seed: int = 0) -> Tensor:
    """Groups of equal size whose members point the same way: balanced k-means of unit vectors.

    Args:
        vectors: (H, D).
        groups: how many; a divisor of H.
        seed: of the first centres.

    Returns:
        (H,): the group of each vector.

    Raises:
        ValueError: when the groups do not divide the vectors.
    """
    H = len(vectors)
    if groups < 1 or H % groups:
        raise ValueError(f"groups must divide the {H} units; got {groups}. All experts have the same size.")
    unit = F.normalize(vectors.detach().float(), dim=-1)
    centres = unit[_apart(unit, groups, seed)]
    best, fit = torch.zeros(H, dtype=torch.long), -torch.inf
    for _ in range(_STEPS):
        likeness = unit @ centres.T
        found = _assigned(likeness, H // groups)
        worth = likeness.gather(1, found.unsqueeze(1)).sum().item()
        if worth <= fit + 1e-6 * H:
            break
        best, fit = found, worth
        total = torch.zeros_like(centres).index_add(0, found, unit)
        centres = F.normalize(total, dim=-1)
    return best


def split(dense: FeedForward, groups: Tensor, choices: int) -> FeedForward:
    """The hidden units of one network as experts of equal size; the sum of all experts is the network.

    Args:
        dense: one expert.
        groups: (H,), the expert of each hidden unit, from `clusters` or otherwise.
        choices: K, how many experts will answer a token with weight one; each brings a K-th of the output's bias.

    Raises:
        ValueError: when the groups are not of equal size or K does not fit.
    """
    _require_one(dense)
    H = dense.outward.shape[-1]
    sizes = torch.bincount(groups) if groups.numel() else groups
    E = len(sizes)
    if groups.shape != (H,) or bool((sizes != sizes[:1]).any()) or not 1 <= choices <= E:
        raise ValueError(
            f"groups must put {H} units into experts of equal size, and 1 to E of them answer; got sizes "
            f"{sizes.tolist()} and {choices} choices. Use clusters(keys(dense), E)."
        )
    order = groups.argsort(stable=True).view(E, -1).to(dense.inward.device)
    inward = dense.inward[0].unflatten(0, (dense.activation.fan, H))[:, order].transpose(0, 1).flatten(1, 2)
    outward = dense.outward[0][:, order].transpose(0, 1)
    inward_bias = outward_bias = None
    if dense.inward_bias is not None and dense.outward_bias is not None:
        bias = dense.inward_bias[0].unflatten(0, (dense.activation.fan, H))
        inward_bias = bias[:, order].transpose(0, 1).flatten(1, 2)
        outward_bias = (dense.outward_bias[0] / choices).expand(E, -1)
    return FeedForward.of(inward, outward, inward_bias, outward_bias, activation=dense.activation)


def emerge(dense: FeedForward, experts: int, choices: int, *, seed: int = 0) -> Mixture:
    """A mixture cut out of one network, without a new weight: units that look for the same become one expert (EMoE).

    The router's rows are the mean keys of the experts and do not learn; the chosen answer with weight one. With all
    experts chosen it is the network itself.

    Args:
        dense: one expert.
        experts: E.
        choices: K.
        seed: of the clusters.
    """
    found = clusters(keys(dense), experts, seed=seed)
    made = split(dense, found, choices)
    score = Dot(dense.inward.shape[-1], experts)
    with torch.no_grad():
        score.weight.copy_(made.inward.unflatten(1, (dense.activation.fan, -1))[:, 0].mean(1))
    score.weight.requires_grad_(False)
    return Mixture(ComposedRouter(score, [], partial(top_k, k=choices), [unweighted]), made)


def extend(layer: Mixture, more: Experts, routers: Sequence[Router] = ()) -> Mixture:
    """A mixture with more experts, and routers over all of them for new tasks; for task 0 nothing changes, to the bit.

    Without new routers the new experts are never chosen, and no task is asked for.

    Args:
        layer: a sparse mixture; its parts are used, not copied.
        more: experts that come after the old ones.
        routers: of tasks 1, 2, ..., each over old and new experts.
    """
    old, new = len(layer.experts.costs), len(more.costs)
    kept = Renamed(layer.router, range(old), old + new)
    router = ByTask([kept, *routers]) if routers else kept
    return Mixture(router, Joined([layer.experts, more]), layer.shared)


def fill(model: Composed, dense: Composed) -> Composed:
    """A copy of a network with mixtures, with all weights of a dense one; experts are copies of the dense layers.

    Routers and shared experts stay as they are.

    Args:
        model: as deep as the dense one, with stacked feed-forward experts.
        dense: without a mixture.

    Raises:
        ValueError: when the two do not fit each other.
    """
    new, given = copy.deepcopy(model), dense.state_dict()
    own = {name for name in new.state_dict() if ".layer." not in name}
    pairs = list(zip(new.chain, dense.chain, strict=False))
    fitting = own <= given.keys() and len(new.chain) == len(dense.chain)
    fitting = fitting and all(_heads(ours) == _heads(theirs) for ours, theirs in pairs)
    if not fitting or not all(isinstance(theirs.layer, Dense) for _, theirs in pairs):
        raise ValueError(
            "a network to be filled and the dense one must have the same blocks, heads and frame; they differ."
        )
    new.load_state_dict({name: given[name] for name in own}, strict=False)
    for ours, theirs in pairs:
        one = copy.deepcopy(theirs.layer.experts)
        if isinstance(ours.layer, Mixture) and isinstance(one, FeedForward):
            one = upcycle(one, len(ours.layer.experts.costs))
        ours.layer.experts = one
    return new


def _heads(block: object) -> int | None:
    return getattr(getattr(block, "attention", None), "heads", None)


def _require_one(dense: FeedForward) -> None:
    if len(dense.inward) != 1:
        raise ValueError(f"a network to grow from is one expert; got {len(dense.inward)}. Average or select first.")


def _apart(unit: Tensor, groups: int, seed: int) -> Tensor:
    """(groups,): vectors far from one another; the first is drawn, each next is the one least like those before."""
    first = int(torch.randint(len(unit), (1,), generator=torch.Generator().manual_seed(seed)))
    chosen = [first]
    nearest = unit @ unit[first]
    for _ in range(groups - 1):
        nearest[chosen[-1]] = torch.inf
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, unit @ unit[chosen[-1]])
    return torch.tensor(chosen)


def _assigned(likeness: Tensor, room: int) -> Tensor:
    """(H, E) -> (H,): best pairs first, no group beyond its room; then exchanges as long as one helps."""
    H, E = likeness.shape
    group, left = [-1] * H, [room] * E
    for pair in likeness.flatten().argsort(descending=True, stable=True).tolist():
        unit, wanted = divmod(pair, E)
        if group[unit] < 0 and left[wanted]:
            group[unit] = wanted
            left[wanted] -= 1
    found = torch.tensor(group)
    for _ in range(H // 4):
        # worth[a, g]: what the total wins if a goes to g; best[f, g]: the most that a member of f can bring.
        worth = likeness - likeness.gather(1, found.unsqueeze(1))
        best = worth[found.argsort(stable=True)].view(E, room, E).amax(1)
        gain = (best + best.T).fill_diagonal_(-torch.inf)
        first, second = divmod(int(gain.argmax()), E)
        if E == 1 or gain[first, second] <= 1e-6:
            break
        a = int(worth[:, second].masked_fill(found != first, -torch.inf).argmax())
        b = int(worth[:, first].masked_fill(found != second, -torch.inf).argmax())
        found[[a, b]] = found[[b, a]]
    return found
