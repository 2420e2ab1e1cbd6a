"""Self-attention whose heads are experts: attention is the sum over its heads, so that a token may do without some."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.layers.together import dense
from nestor.ops.attention import attend
from nestor.ops.lists import gather, listed, scatter
from nestor.types import NOBODY, Signal, Sparse

if TYPE_CHECKING:
    from nestor.layers.block import SelfAttention
    from nestor.types import Router, Routing


class _Heads(nn.Module):
    """Queries, keys, values and what each head writes, one slice for each of H heads."""

    def __init__(self, width: int, heads: int, router: Router, *, each: int | None = None):
        super().__init__()
        if heads < 1 or (each is None and width % heads) or (each is not None and each < 1):
            raise ValueError(f"heads must divide the width {width}, or say how wide each is; got {heads} and {each}.")
        each = width // heads if each is None else each
        self.router = router
        self.inward = nn.Parameter((torch.rand(3, heads, each, width) * 2 - 1) * width**-0.5)
        self.inward_bias = nn.Parameter(torch.zeros(3, heads, each))
        self.outward = nn.Parameter((torch.rand(heads, each, width) * 2 - 1) * (heads * each) ** -0.5)
        self.outward_bias = nn.Parameter(torch.zeros(width))

    def ask(self, tokens: Tensor, signal: Signal | None) -> tuple[Sparse, Tensor, Tensor, Tensor, Signal]:
        """The decision, lists of tokens for each head, (B, H, N) twice, their weights, and the signal."""
        signal = Signal() if signal is None else signal
        routing, heads = self.router(tokens, signal), self.inward.shape[1]
        if not isinstance(routing, Sparse) or routing.scores.shape[-1] != heads:
            raise ValueError(
                f"heads need a sparse decision over {heads} of them; got {type(routing).__name__} over "
                f"{routing.scores.shape[-1]}. Build both with the same number."
            )
        served = routing.index != NOBODY
        hits = torch.zeros_like(routing.scores).scatter_add(-1, routing.index.clamp_min(0), served.to(routing.scores))
        place, real = listed(hits > 0)
        weight = dense(routing).mT.gather(-1, place) * real
        return routing, place, real, weight.to(tokens.dtype), signal

    def part(self, which: int, rows: Tensor) -> Tensor:
        """Queries (0), keys (1) or values (2) of rows (B, 1 or H, N, D) -> (B, H, N, each)."""
        return rows @ self.inward[which].mT + self.inward_bias[which].unsqueeze(1)

    def tell(self, mixed: Tensor, weight: Tensor, place: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted answers of the heads (B, H, N, each) at their tokens, added up; a masked token gets zero."""
        written = (mixed * weight.unsqueeze(-1)) @ self.outward
        answer = scatter(written, place, tokens.shape[1]) + self.outward_bias
        return answer if mask is None else answer.masked_fill(~mask.unsqueeze(-1), 0)


Net = TypeVar("Net", bound=_Heads)


@torch.no_grad()
def taken(heads: Net, attention: SelfAttention) -> Net:
    """The same routed attention, with the weights of a plain one of as many heads, copied in place.

    Raises:
        ValueError: when the heads differ in number or width.
    """
    _, H, each, D = heads.inward.shape
    if attention.heads != H or H * each != attention.outward.in_features or attention.outward.out_features != D:
        raise ValueError(
            f"both must have {H} heads of {each} channels and the width {D}; got {attention.heads} heads and the width "
            f"{attention.outward.out_features}."
        )
    heads.inward.copy_(attention.inward.weight.view(3, H, each, D))
    heads.inward_bias.copy_(attention.inward.bias.view(3, H, each))
    heads.outward.copy_(attention.outward.weight.T.view(H, each, D))
    heads.outward_bias.copy_(attention.outward.bias)
    return heads


@final
class ChosenHeads(_Heads):
    """A token asks only in the heads that it chose, and weighs their answers; keys and values are all tokens' (MoH).

    With all heads chosen and weights one it is plain self-attention. A masked token is neither key nor value.

    Args:
        width: D.
        heads: H.
        router: over the heads, sparse.
        each: channels of a head; D / H unless given.

    Raises:
        ValueError: when the heads do not divide the width and no width of a head is given.
    """

    def forward(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D) and the decision taken.

        Raises:
            ValueError: when the decision is soft, or over another number of heads.
        """
        routing, place, _, weight, signal = self.ask(tokens, signal)
        mask, size = signal.mask, None
        if mask is not None:
            tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0)
            # Where all is masked nobody asks, and any keys will do.
            size = (mask | ~mask.any(1, keepdim=True)).to(tokens.dtype).unsqueeze(-1)
        key, value = (self.part(which, tokens.unsqueeze(1)) for which in (1, 2))
        mixed = attend(self.part(0, gather(tokens, place)), key, value, size)
        return self.tell(mixed, weight, place, tokens, mask), (routing,)

    def macs(self, routing: Routing, shape: tuple[int, int, int]) -> int:
        """Multiply-accumulates of the router, of all keys and values, and of the questions that were asked.

        Args:
            routing: as returned.
            shape: (B, T, D) of the tokens.
        """
        B, T, D = shape
        _, H, each, _ = self.inward.shape
        asked = int(routing.counts.sum())
        return B * self.router.macs(T) + 2 * B * T * H * each * D + asked * (2 * D * each + 2 * T * each)


@final
class SeparateHeads(_Heads):
    """Each head is plain attention among the tokens that chose it: queries, keys and values are theirs alone (UoE).

    With all heads chosen and weights one it is plain self-attention. A token that no head serves gets the bias alone.

    Args:
        width: D.
        heads: H.
        router: over the heads, sparse.
        each: channels of a head; D / H unless given.

    Raises:
        ValueError: when the heads do not divide the width and no width of a head is given.
    """

    def forward(self, tokens: Tensor, signal: Signal | None = None) -> tuple[Tensor, tuple[Routing, ...]]:
        """(B, T, D) -> (B, T, D) and the decision taken.

        Raises:
            ValueError: when the decision is soft, or over another number of heads.
        """
        routing, place, real, weight, signal = self.ask(tokens, signal)
        if signal.mask is not None:
            tokens = tokens.masked_fill(~signal.mask.unsqueeze(-1), 0)
        rows = gather(tokens, place)
        query, key, value = (self.part(which, rows) for which in range(3))
        # What fills a list up is no key, but a list of nothing else must have an answer too; its weights are zero.
        filling = ~real & real.any(-1, keepdim=True)
        never = torch.zeros_like(real, dtype=query.dtype).masked_fill(filling, -torch.inf).unsqueeze(2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=never)
        return self.tell(mixed, weight, place, tokens, signal.mask), (routing,)

    def macs(self, routing: Routing, shape: tuple[int, int, int]) -> int:
        """Multiply-accumulates of the router and of attention in lists as long as an item's longest, none for no token.

        Args:
            routing: as returned, sparse.
            shape: (B, T, D) of the tokens.
        """
        B, T, D = shape
        _, H, each, _ = self.inward.shape
        assert isinstance(routing, Sparse)
        served = (routing.index != NOBODY).to(torch.float64)
        hits = served.new_zeros(B, T, H).scatter_add(-1, routing.index.clamp_min(0), served)
        lists = (hits > 0).sum(1)
        longest, busy = (lists.amax(-1) if T else lists[:, 0]), (lists > 0).sum(-1)
        spent = busy * (4 * longest * each * D + 2 * longest * longest * each)
        return B * self.router.macs(T) + int(spent.sum())
