"""Every score, router and kind of expert, tiny: what the laws are tested on."""

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from inspect import isabstract
from pathlib import Path

import torch
from torch.nn import functional as F

import nestor
from nestor.experts.adapted import Adapted
from nestor.experts.cheap import Constant, Identity, Modulation, Zero
from nestor.experts.feedforward import RELU, SWIGLU, FeedForward
from nestor.experts.gated import Gated, Scaled
from nestor.experts.joined import Joined
from nestor.experts.linear import Linear as LinearExperts
from nestor.experts.lowrank import Bottleneck, Kronecker, LoRA
from nestor.experts.memory import Memory
from nestor.experts.nested import Nested
from nestor.experts.partly import PartlyShared
from nestor.experts.rounded import Rounded, ternary
from nestor.routing.adjust import Bias, GroupLimit, Noise, Sigmoid, Softmax
from nestor.routing.always import Always, Lengths
from nestor.routing.choose import (
    expert_choice,
    grouped_top_k,
    sampled,
    soft,
    threshold,
    top_k,
    top_p,
)
from nestor.routing.fixed import Again, Shuffled
from nestor.routing.floor import Raised
from nestor.routing.given import Given, Hash, Jittered, Pooled, Segment, TaskBias, TaskDot, contents
from nestor.routing.graph import Graph, nearest
from nestor.routing.learned import MLP, Cosine, Dot, ProductKey, Slots
from nestor.routing.marks import Marks, relative
from nestor.routing.refine import drop, drop_in_batch, hard, heaviest_first, renormalise, unweighted
from nestor.routing.router import ComposedRouter, ExpertPreferredRouter
from nestor.routing.score import ExpectedLoss, Linear, Perturbed, Score, Sum, TrailingEnergy, Uniform
from nestor.routing.several import ByTask, Renamed
from nestor.routing.straight import StraightThrough
from nestor.types import Experts, Origin, Router, Signal, Sparse

D, E = 8, 4


def filled(score: Score) -> Score:
    """With numbers in place of the zeros that some begin with."""
    for parameter in score.parameters():
        torch.nn.init.normal_(parameter)
    return score


def kinds(base: type, room: str) -> set[type]:
    """All classes of a room that can be built and are of this kind."""
    for path in Path(nestor.__path__[0], room).glob("[!_]*.py"):
        import_module(f"nestor.{room}.{path.stem}")
    found, left = set(), [base]
    while left:
        left += (below := left.pop().__subclasses__())
        found |= {kind for kind in below if kind.__module__.startswith(f"nestor.{room}.") and not isabstract(kind)}
    return found


def met(things: Iterable[torch.nn.Module]) -> set[type]:
    """The classes of these and of all their parts."""
    return {type(part) for thing in things for part in thing.modules()}


SCORES: dict[str, Callable[[], Score]] = {
    "linear": lambda: Linear(D, E),
    "trailing_energy": lambda: TrailingEnergy(2, E),
    "expected_loss": lambda: ExpectedLoss(2, D, E),
    "uniform": lambda: Uniform(E),
    "dot": lambda: Dot(D, E),
    "cosine": lambda: Cosine(D, E, project=6),
    "mlp": lambda: MLP(D, 5, E),
    "product_key": lambda: ProductKey(D, E, query=6),
    "slots": lambda: Slots(D, E // 2, slots=2),
    "hash_position": lambda: Hash(E),
    "hash_content": lambda: Hash(E, key=contents, seed=3),
    "given": lambda: Given(E),
    "lengths": lambda: Lengths(torch.nn.Parameter(torch.randn(3, E, 2, D)), torch.nn.Parameter(torch.randn(3, E, 2))),
    "task_bias": lambda: Sum([Dot(D, E), TaskBias(3, E)]),
    "task_dot": lambda: TaskDot(D, 3, E),
    "pooled": lambda: Pooled(Dot(D, E)),
    "segment": lambda: Segment(Dot(D, E), length=3),
    "jittered": lambda: Jittered(Dot(D, E), span=0.1),
    "perturbed": lambda: Sum([Dot(D, E), Perturbed(E)]),
    "graph": lambda: Graph(D, 5, E, neighbours=partial(nearest, k=2)),
}
# A token's score is its own affair: neither its place nor its neighbours matter.
OF_TOKEN = SCORES.keys() - {"uniform", "hash_position", "hash_content", "segment"}
RANDOM_SCORES = {"uniform", "jittered", "perturbed"}

ROUTERS: dict[str, Callable[[], Router]] = {
    "switch": lambda: ComposedRouter(
        Jittered(Dot(D, E), span=0.01), [Softmax()], partial(top_k, k=1), [partial(drop_in_batch, factor=1.25)]
    ),
    "vmoe": lambda: ComposedRouter(
        Dot(D, E), [Noise(1 / E), Softmax()], partial(top_k, k=2), [partial(drop, factor=1.0, order=heaviest_first)]
    ),
    "mixtral": lambda: ComposedRouter(Dot(D, E), [Softmax()], partial(top_k, k=2), [renormalise]),
    "deepseek": lambda: ComposedRouter(
        Dot(D, E),
        [Sigmoid(), Bias(E), GroupLimit(groups=2, keep=1)],
        partial(top_k, k=2),
        [partial(renormalise, scale=1.0)],
    ),
    "top_p": lambda: ComposedRouter(Dot(D, E), [Softmax()], partial(top_p, p=0.7), [renormalise]),
    "threshold": lambda: ComposedRouter(Dot(D, E), [Sigmoid()], partial(threshold, least=0.5)),
    "grouped": lambda: ComposedRouter(Dot(D, E), [Softmax()], partial(grouped_top_k, k=2, groups=2), [renormalise]),
    "sampled": lambda: ComposedRouter(Dot(D, E), [Softmax()], partial(sampled, k=2), [renormalise]),
    "expert_choice": lambda: ComposedRouter(Dot(D, E), [Softmax()], partial(expert_choice, factor=2.0)),
    "expert_choice_one": lambda: ComposedRouter(Dot(D, E), [Softmax()], partial(expert_choice, factor=2.0, most=1)),
    "expert_preferred": lambda: ExpertPreferredRouter(Dot(D, E)),
    "soft": lambda: ComposedRouter(Slots(D, E, slots=2), [], partial(soft, slots=2)),
    "cosine": lambda: ComposedRouter(Cosine(D, E, project=6), [Softmax()], partial(top_k, k=1), [hard]),
    "hash": lambda: ComposedRouter(Hash(E), [], partial(top_k, k=1), [unweighted]),
    "given": lambda: ComposedRouter(Given(E), [Softmax()], partial(top_k, k=1)),
    "task_dot": lambda: ComposedRouter(TaskDot(D, 3, E), [Softmax()], partial(top_k, k=2)),
    "pooled": lambda: ComposedRouter(Pooled(Dot(D, E)), [Softmax()], partial(top_k, k=1)),
    "segment": lambda: ComposedRouter(Segment(Dot(D, E), length=3), [Softmax()], partial(top_k, k=1)),
    "product_key": lambda: ComposedRouter(ProductKey(D, E, query=6), [Softmax()], partial(top_k, k=2), [renormalise]),
    "graph": lambda: ComposedRouter(
        Graph(D, 5, E, neighbours=partial(nearest, k=2)), [Softmax()], partial(top_k, k=1), [renormalise]
    ),
    "raised": lambda: ComposedRouter(Dot(D, E), [Softmax(), Raised(0.01)], partial(top_k, k=2)),
    "renamed": lambda: Renamed(
        ComposedRouter(Dot(D, 3), [Softmax()], partial(top_k, k=2), [renormalise]), (2, 0, 3), E
    ),
    "marks": lambda: ComposedRouter(Dot(D, E), [Softmax(), Marks(2)], partial(expert_choice, factor=2.0), [relative]),
    "always": lambda: Always(D, 2, ComposedRouter(Dot(D, E - 2), [Softmax()], partial(top_k, k=1))),
    "straight_through": lambda: StraightThrough(Dot(D, E), temperature=5.0),
    "linear": lambda: ComposedRouter(filled(Linear(D, E)), [Softmax()], partial(top_k, k=2), [renormalise]),
    "mlp": lambda: ComposedRouter(MLP(D, 5, E), [Softmax()], partial(top_k, k=2)),
    "trailing_energy": lambda: ExpertPreferredRouter(Sum([TrailingEnergy(2, E), filled(Linear(D, E))])),
    "expected_loss": lambda: ExpertPreferredRouter(ExpectedLoss(2, D, E)),
    "lengths": lambda: ComposedRouter(SCORES["lengths"](), [Softmax()], partial(top_k, k=2), [renormalise]),
    "uniform": lambda: ComposedRouter(Uniform(E), [Softmax()], partial(top_k, k=1)),
    "perturbed": lambda: ComposedRouter(Sum([Dot(D, E), Perturbed(E)]), [Softmax()], partial(top_k, k=2)),
    "task_bias": lambda: ComposedRouter(Sum([Dot(D, E), TaskBias(3, E)]), [Softmax()], partial(top_k, k=2)),
    "again": Again,
    "shuffled": lambda: Shuffled(E),
    "by_task": lambda: ByTask([ROUTERS[name]() for name in ("mixtral", "cosine", "deepseek")]),
}
# Weights of every token that counts add up to one, whatever the tokens.
NORMALISED = (
    "mixtral",
    "deepseek",
    "top_p",
    "grouped",
    "sampled",
    "soft",
    "hash",
    "given",
    "cosine",
    "product_key",
    "graph",
    "renamed",
    "straight_through",
    "linear",
    "lengths",
    "again",
    "shuffled",
    "by_task",
)
# What is drawn depends on how many numbers are drawn before.
DRAWN = {"sampled", "shuffled", "uniform"}


def signal(B: int, T: int, mask: torch.Tensor | None = None) -> Signal:
    """All that any router may ask for."""
    even = (T - 3 * (T // E), *(T // E,) * 3)
    ids = torch.arange(T).expand(B, T) * 7
    index = (ids % E).unsqueeze(-1)
    earlier = F.one_hot(index[..., 0], E).float()
    before = Sparse(earlier, index, torch.ones(B, T, 1), Origin(earlier, earlier, index))
    return Signal(counts=even, task=torch.arange(B) % 3, ids=ids, mask=mask, routing=before)


EXPERTS: dict[str, Callable[[], Experts]] = {
    "gelu": lambda: FeedForward(D, 6, E),
    "swiglu": lambda: FeedForward(D, 6, E, activation=SWIGLU, bias=False),
    "narrowing": lambda: FeedForward(D, 6, E, activation=RELU, out=3),
    "many": lambda: FeedForward(D, 12, 2 * E, activation=SWIGLU),
    "many_odd": lambda: FeedForward(D, 5, 2 * E),
    "nested": lambda: Nested((2, 4, 6, 8), (3, 6, 9, 12)),
    "nested_swiglu": lambda: Nested((0, 4, 6, 8), (0, 6, 6, 6), activation=SWIGLU),
    "lora": lambda: LoRA(D, 2, E, scale=0.5),
    "bottleneck": lambda: Bottleneck(D, 3, E, scale=0.1),
    "kronecker": lambda: Kronecker(D, 2, 3, E, out=6),
    "identity": lambda: Identity(E),
    "zero": lambda: Zero(E),
    "constant": lambda: Constant(D, E),
    "modulation": lambda: Modulation(D, E),
    "gated": lambda: Gated(FeedForward(D, 6, E), D),
    "scaled": lambda: Scaled(FeedForward(D, 6, E), 0.5),
    "memory": lambda: Memory(D, 2, E, query=6, read=4),
    "shift": lambda: Rounded(D, 6, E),
    "ternary": lambda: Rounded(D, 6, E, rounding=ternary, activation=SWIGLU),
    "linear": lambda: LinearExperts(D, E, out=3),
    "partly_shared": lambda: PartlyShared(D, 6, E, own=3),
    "joined": lambda: Joined([FeedForward(D, 6, 2), Identity(), Zero()]),
    "adapted": lambda: Adapted(FeedForward(D, 6, E), 2, (0, 2, 3)),
    "unequal": lambda: Joined([FeedForward(D, 2, 1), LoRA(D, 1, 1), FeedForward(D, 9, 2, activation=SWIGLU)]),
}


def randomised(experts: Experts) -> Experts:
    """With numbers in place of the zeros that some begin with."""
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        # Numbers that half precision holds too, so that weights which are rounded further fall on the same side.
        parameter.data.copy_(parameter.data.bfloat16())
    return experts


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of those that a module's parameters have."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
