"""Attention whose heads are experts: each token is given some of them, and all read one set of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.ops.attention import attend
from nestor.types import NOBODY, Sparse

if TYPE_CHECKING:
    from nestor.layers.mixture import Mixture
    from nestor.types import Experts, Router, Routing, Signal


@final
class QueryMixture(nn.Module):
    """A token asks in the heads that its router chose, and the heads' weighted answers are added up.

    An expert is a pair: a projection into a query and one from what was read back to the stream. There is one head of
    keys and one of values for all.

    Args:
        width: D.
        router: sparse, over as many experts as there are.
        queries: from D to the size of a head.
        outputs: from the size of a head to D'.
        size: of a head.

    Raises:
        ValueError: when there are not as many outputs as queries.
    """

    def __init__(self, width: int, router: Router, queries: Experts, outputs: Experts, *, size: int):
        super().__init__()
        if len(queries.costs) != len(outputs.costs):
            raise ValueError(
                f"every query needs its output; got {len(queries.costs)} queries and {len(outputs.costs)} outputs."
            )
        self.router, self.queries, self.outputs = router, queries, outputs
        self.memory = nn.Linear(width, 2 * size)

    def forward(self, tokens: Tensor, signal: Signal) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D') and the decision taken.

        Raises:
            ValueError: when the decision is soft or over another number of experts, or there is a mask.
        """
        if signal.mask is not None:
            raise ValueError("queries of experts know no padding; got a mask. Take items of one length.")
        routing = self.router(tokens, signal)
        counts = routing.counts
        if not isinstance(routing, Sparse) or len(counts) != len(self.queries.costs):
            raise ValueError(
                f"queries need a sparse decision over {len(self.queries.costs)} experts; got {type(routing).__name__} "
                f"over {len(counts)}."
            )
        B, T, K = routing.index.shape
        flat = routing.index.flatten()
        # The place of each row in the order of dispatch: by expert, then by item and token, those of nobody left out.
        place = flat.argsort(stable=True)[int((flat == NOBODY).sum()) :]
        asked = self.queries(routing.dispatch(tokens), counts)
        heads = asked.new_zeros(B * T * K, asked.shape[-1]).index_copy(0, place, asked)
        key, value = (part.unsqueeze(1).expand(-1, K, -1, -1) for part in self.memory(tokens).chunk(2, -1))
        read = attend(heads.view(B, T, K, heads.shape[-1]).transpose(1, 2), key.to(heads.dtype), value.to(heads.dtype))
        rows = read.transpose(1, 2).flatten(0, 2).index_select(0, place)
        return routing.combine(self.outputs(rows, counts)), (routing,)

    def macs(self, routing: Routing, shape: tuple[int, int, int]) -> int:
        """Multiply-accumulates that a decision came to, over tokens of shape (B, T, D)."""
        B, T, D = shape
        two = self.memory.out_features
        pairs = zip(routing.counts.tolist(), self.queries.costs, self.outputs.costs, strict=True)
        return B * self.router.macs(T) + B * T * D * two + sum(n * (a + b + T * two) for n, a, b in pairs)


def first_head(layer: QueryMixture, tokens: Tensor) -> Tensor:
    """What the layer would answer if every token asked in the first head alone, with weight one: (B, T, D) each."""
    count = torch.zeros(len(layer.queries.costs), dtype=torch.long, device=tokens.device)
    count[0] = tokens[..., 0].numel()
    query = layer.queries(tokens.flatten(0, 1), count).unflatten(0, tokens.shape[:2])
    read = attend(*(part.unsqueeze(1) for part in (query, *layer.memory(tokens).chunk(2, -1)))).squeeze(1)
    return layer.outputs(read.flatten(0, 1), count).unflatten(0, tokens.shape[:2])


@final
class MixedBlock(nn.Module):
    """x + attention(norm(x)), then x + layer(norm(x)), where both decide.

    Args:
        width: D.
        attention: its heads are experts.
        layer: a mixture.
        eps: of the norms.
    """

    def __init__(self, width: int, attention: QueryMixture, layer: Mixture, *, eps: float = 1e-6):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.attention, self.layer = attention, layer

    def forward(self, tokens: Tensor, signal: Signal) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D) and the two decisions taken."""
        answer, first = self.attention(self.norm1(tokens), signal)
        tokens = tokens + answer
        answer, second = self.layer(self.norm2(tokens), signal)
        return tokens + answer, (*first, *second)
