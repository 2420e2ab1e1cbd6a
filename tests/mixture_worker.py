"""One of two processes of a mixture in training: `python mixture_worker.py FOLDER`, started by torchrun."""

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


def model() -> nn.Module:
    torch.manual_seed(0)
    router = ComposedRouter(Dot(8, 4), [Softmax()], partial(top_k, k=1))
    with torch.no_grad():
        router.get_parameter("score.weight").copy_(torch.eye(8)[:4])
    first = nn.Linear(8, 8)
    with torch.no_grad():
        first.weight.copy_(torch.eye(8))
        first.bias.zero_()
    return nn.Sequential(first, Slot("one", Mixture(router, FeedForward(8, 6, 4))), nn.Linear(8, 2))


def tokens(rank: int) -> Tensor:
    """Of the first process all go to one expert, those of the second to two others; nobody wants the last."""
    generator = torch.Generator().manual_seed(rank)
    wanted = torch.tensor([[0, 0, 0], [1, 2, 1]])[rank]
    return 0.1 * torch.randn(2, 3, 8, generator=generator) + 20 * torch.eye(8)[wanted]


def loss(network: nn.Module, rank: int) -> Tensor:
    with recording() as record:
        answer = network(tokens(rank))
    return answer.square().mean() + balance([Balance(weight=1.0)], record.routings)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    network = DistributedDataParallel(model())
    for _ in range(2):
        network.zero_grad()
        loss(network, rank).backward()
    found = {name: p.grad.contiguous() for name, p in network.module.named_parameters() if p.grad is not None}
    save_file(found, Path(sys.argv[1]) / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()
