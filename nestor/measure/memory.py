"""How much memory a call takes at once, counted tensor by tensor and not as the allocator sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of tensors that a call holds at once, beyond those that were there before.

    What it gives back counts; what an operator of torch needs for itself, inside, does not. Anything that a network
    remembers after its first call, such as a plan, should be there already: call it once before.

    Args:
        call: runs what is measured, for instance a network on some pictures.
    """
    counting = _Counting()
    with counting:
        call()
    return counting.most


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {StorageWeakRef(each.untyped_storage()) for each in _tensors((args, kwargs))}
        answer = func(*args, **(kwargs or {}))
        for each in _tensors(answer):
            storage = each.untyped_storage()
            reference = StorageWeakRef(storage)
            # Views share what their source holds, and parameters were there before.
            if reference not in known:
                self._alive[reference] = storage.nbytes()
        self._alive = {reference: size for reference, size in self._alive.items() if not reference.expired()}
        self.most = max(self.most, sum(self._alive.values()))
        return answer


def _tensors(parts: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(parts) if isinstance(leaf, torch.Tensor)]
