"""One of the processes of mixtures in training: `python mixture_worker.py FOLDER`, started by torchrun.

Two processes take one item each, one takes both: after the same steps all have the same weights.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nestor.experts.feedforward import FeedForward
from nestor.layers.mixture import Mixture
from nestor.layers.slot import Slot, recording
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.training.balance import Balance, balance

STEPS = 3
EXPERTS = (4, 8)
"""Few, which a loop visits, and many, which it does not."""


def model(experts: int = 4) -> nn.Module:
    torch.manual_seed(0)
    router = ComposedRouter(Dot(8, experts), [Softmax()], partial(top_k, k=1))
    with torch.no_grad():
        router.get_parameter("score.weight").copy_(torch.eye(8)[:experts])
    first = nn.Linear(8, 8)
    with torch.no_grad():
        first.weight.copy_(torch.eye(8))
        first.bias.zero_()
    return nn.Sequential(first, Slot("one", Mixture(router, FeedForward(8, 6, experts))), nn.Linear(8, 2))


def tokens(rank: int) -> Tensor:
    """Of the first process all go to one expert, those of the second to two others; nobody wants the last."""
    generator = torch.Generator().manual_seed(rank)
    wanted = torch.tensor([[0, 0, 0], [1, 2, 1]])[rank]
    return 0.1 * torch.randn(2, 3, 8, generator=generator) + 20 * torch.eye(8)[wanted]


def loss(network: nn.Module, rank: int) -> Tensor:
    with recording() as record:
        answer = network(tokens(rank))
    return answer.square().mean() + balance([Balance(weight=1.0)], record.routings)


def trained(network: nn.Module, ranks: list[int], folder: Path) -> None:
    """A few steps of a loss that is a mean over items; the state is written as a whole, whoever computed it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        network(torch.cat([tokens(rank) for rank in ranks])).square().mean().backward()
        optimizer.step()
    whole = network.module if isinstance(network, DistributedDataParallel) else network
    save_file({name: tensor.contiguous() for name, tensor in whole.state_dict().items()}, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    for experts in EXPERTS:
        network = DistributedDataParallel(model(experts))
        for _ in range(2):
            network.zero_grad()
            loss(network, rank).backward()
        found = {name: p.grad.contiguous() for name, p in network.module.named_parameters() if p.grad is not None}
        save_file(found, folder / f"{experts}.{rank}.gradients")
        trained(DistributedDataParallel(model(experts)), [rank], folder / f"{experts}.{rank}.state")
    torch.distributed.destroy_process_group()
