"""Laws that every score and every router obeys."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from mixtures import DRAWN, NORMALISED, OF_TOKEN, RANDOM_SCORES, ROUTERS, SCORES, D, E, kinds, met, signal
from safetensors.torch import load, save

from nestor.routing import losses
from nestor.routing.adjust import Adjustment, Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.routing.score import Score
from nestor.types import NOBODY, Router, Routing, Signal, Soft, Sparse

INPUTS = {
    "constant": torch.ones(2, 6, D),
    "zero": torch.zeros(2, 6, D),
    "huge": torch.randn(2, 6, D, generator=torch.Generator().manual_seed(1)) * 1e15,
    "vast": torch.randn(2, 6, D, generator=torch.Generator().manual_seed(1)) * 1e20,
    "tiny": torch.randn(2, 6, D, generator=torch.Generator().manual_seed(1)) * 1e-30,
    "single": torch.ones(1, 1, D),
    "no tokens": torch.ones(2, 0, D),
    "no items": torch.ones(0, 6, D),
}
SPARSE = sorted(ROUTERS.keys() - {"soft"})
# Cards that are dealt out have no logits, and so no balance to learn.
BALANCED = sorted(ROUTERS.keys() - {"soft", "shuffled"})
OF_PLACE = {"hash", "segment", "again"}
# The choice is each token's own: neither its place nor the others matter.
TOKEN_CHOICE = [
    "linear",
    "mlp",
    "lengths",
    "perturbed",
    "task_bias",
    "mixtral",
    "deepseek",
    "top_p",
    "threshold",
    "grouped",
    "cosine",
    "given",
    "task_dot",
    "product_key",
]
LOSSES = {
    "switch": losses.switch,
    "switch_by_item": losses.switch_by_item,
    "group": partial(losses.group, groups=2),
    "importance": losses.importance,
    "importance_of_time": partial(losses.importance, costs=(1, 2, 3, 4)),
    "gates": losses.gates,
    "load": partial(losses.load, deviation=0.25),
    "z": losses.z,
    "entropy": losses.entropy,
    "spread": losses.spread,
    "cost": partial(losses.cost, costs=(1, 2, 3, 4)),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def total_weight(routing: Routing) -> torch.Tensor:
    """(B, T): how much answer each token gets in all."""
    if isinstance(routing, Soft):
        return routing.take.sum((2, 3))
    assert isinstance(routing, Sparse)
    return routing.weight.sum(-1)


def sparse(routing: Routing) -> Sparse:
    assert isinstance(routing, Sparse)
    return routing


def test_no_score_adjustment_or_router_is_forgotten():
    routers = met(build() for build in ROUTERS.values())
    assert kinds(Score, "routing") == met(build() for build in SCORES.values()) & kinds(Score, "routing")
    for base in (Score, Adjustment, Router):
        assert kinds(base, "routing") <= routers


@pytest.mark.parametrize("name", SCORES)
def test_scores_have_one_number_for_each_expert_and_every_parameter_learns(name):
    score = SCORES[name]()
    logits = score(torch.randn(3, 7, D), signal(3, 7))
    assert logits.shape == (3, 7, E)
    parameters = list(score.parameters())
    if parameters:
        (logits * torch.randn_like(logits)).sum().backward()
    for parameter in parameters:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(OF_TOKEN - RANDOM_SCORES))
def test_permuting_tokens_permutes_their_scores(name):
    score, tokens, order = SCORES[name](), torch.randn(2, 7, D), torch.randperm(7)
    torch.testing.assert_close(score(tokens, signal(2, 7))[:, order], score(tokens[:, order], signal(2, 7)))


@pytest.mark.parametrize("name", sorted(SCORES.keys() - RANDOM_SCORES))
def test_scores_in_half_precision_stay_near_single(name):
    score, tokens = SCORES[name](), torch.randn(2, 7, D).bfloat16()
    single = score(tokens.float(), signal(2, 7))
    half = score.bfloat16()(tokens, signal(2, 7))
    torch.testing.assert_close(half.float(), single, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("kind", INPUTS)
def test_scores_are_numbers_whatever_the_tokens(name, kind):
    tokens = INPUTS[kind]
    assert SCORES[name]()(tokens, signal(tokens.shape[0], tokens.shape[1])).isfinite().all()


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("training", [True, False])
def test_routers_answer_whatever_the_tokens(name, kind, training):
    tokens = INPUTS[kind]
    routing = ROUTERS[name]().train(training)(tokens, signal(tokens.shape[0], tokens.shape[1]))
    rows = routing.dispatch(tokens)
    back = routing.combine(rows)
    assert len(rows) == int(routing.counts.sum())
    assert routing.counts.shape == (E,)
    assert back.shape == tokens.shape
    assert routing.scores.isfinite().all()
    assert back.isfinite().all()


@pytest.mark.parametrize("name", BALANCED)
@pytest.mark.parametrize("kind", INPUTS)
def test_losses_are_numbers_whatever_the_tokens(name, kind):
    tokens = INPUTS[kind].clone().requires_grad_()
    routing = sparse(ROUTERS[name]()(tokens, signal(tokens.shape[0], tokens.shape[1])))
    total = torch.stack([loss(routing) for loss in LOSSES.values()])
    assert total.isfinite().all()
    if total.requires_grad:
        total.sum().backward()
    assert tokens.grad is None or not tokens.grad.isnan().any()


@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_weights_add_up_and_identity_experts_give_back_the_input(name):
    tokens = torch.randn(3, 7, D)
    routing = ROUTERS[name]()(tokens, signal(3, 7))
    torch.testing.assert_close(total_weight(routing), torch.ones(3, 7))
    if isinstance(routing, Sparse):
        torch.testing.assert_close(routing.combine(routing.dispatch(tokens)), tokens)


@pytest.mark.parametrize("name", SPARSE)
def test_no_token_names_an_expert_twice_and_nobody_weighs_nothing(name):
    routing = sparse(ROUTERS[name]()(torch.randn(3, 7, D), signal(3, 7)))
    index = routing.index
    assert ((index >= NOBODY) & (index < E)).all()
    assert not routing.weight[index == NOBODY].any()
    for chosen in index.flatten(0, 1).tolist():
        served = [expert for expert in chosen if expert != NOBODY]
        assert len(set(served)) == len(served)


@pytest.mark.parametrize("name", TOKEN_CHOICE)
def test_permuting_tokens_permutes_the_decision(name):
    router, tokens, order = ROUTERS[name]().eval(), torch.randn(2, 7, D), torch.randperm(7)
    plain, moved = (sparse(router(each, signal(2, 7))) for each in (tokens, tokens[:, order]))
    assert torch.equal(plain.index[:, order], moved.index)
    torch.testing.assert_close(plain.weight[:, order], moved.weight)


@pytest.mark.parametrize("name", sorted(ROUTERS.keys() - DRAWN - {"switch"}))
def test_other_items_change_nothing(name):
    router, tokens = ROUTERS[name]().eval(), torch.randn(3, 7, D)
    alone = router(tokens[:1], signal(1, 7))
    among = router(tokens, signal(3, 7))
    rows = torch.arange(int(among.counts.sum())).unsqueeze(-1).float()
    assert rows.shape[0] >= int(alone.counts.sum())
    torch.testing.assert_close(total_weight(among)[:1], total_weight(alone))
    torch.testing.assert_close(among.combine(among.dispatch(tokens))[:1], alone.combine(alone.dispatch(tokens[:1])))


@pytest.mark.parametrize("name", ROUTERS)
def test_masked_tokens_are_served_by_nobody_and_change_nothing(name):
    router, tokens = ROUTERS[name]().eval(), torch.randn(2, 7, D)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 5:] = False
    torch.manual_seed(3)
    routing = router(tokens, signal(2, 7, mask))
    assert not total_weight(routing)[~mask].any()
    spoilt = tokens.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    torch.manual_seed(3)
    again = router(spoilt, signal(2, 7, mask))
    assert torch.equal(total_weight(routing), total_weight(again))
    total = total_weight(again).square().sum()
    if total.requires_grad:
        total.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in router.parameters())


@pytest.mark.parametrize("name", sorted(ROUTERS.keys() - DRAWN))
@pytest.mark.parametrize("where", ["end", "anywhere"])
def test_padding_equals_absence(name, where):
    if where == "anywhere" and name in OF_PLACE:
        pytest.skip("its decisions depend on where a token stands")
    # The queue of a batch is that of all its items.
    lengths = [8] if name == "switch" else [8, 5, 1]
    router, B, T = ROUTERS[name]().eval(), len(lengths), 16
    place = torch.stack([torch.randperm(T) if where == "anywhere" else torch.arange(T) for _ in lengths])
    mask = place < torch.tensor(lengths).unsqueeze(1)
    tokens = torch.randn(B, T, D)

    def known(B: int, T: int, mask: torch.Tensor | None = None) -> Signal:
        return replace(signal(B, T, mask), task=torch.zeros(B, dtype=torch.long), counts=(T - 1, 0, 1, 0))

    padded = router(tokens, known(B, T, mask))
    answer, number = padded.combine(padded.dispatch(tokens.masked_fill(~mask.unsqueeze(-1), 0))), torch.zeros(E).long()
    for b, length in enumerate(lengths):
        left = tokens[b : b + 1, mask[b]]
        alone = router(left, known(1, length))
        torch.testing.assert_close(total_weight(padded)[b, mask[b]], total_weight(alone)[0])
        torch.testing.assert_close(answer[b, mask[b]], alone.combine(alone.dispatch(left))[0])
        if isinstance(padded, Sparse):
            assert torch.equal(padded.index[b, mask[b]], sparse(alone).index[0])
        number += alone.counts
    assert padded.counts.tolist() == number.tolist()
    assert not total_weight(padded)[~mask].any()


@pytest.mark.parametrize("name", ROUTERS)
def test_when_all_is_masked_nobody_is_served(name):
    mask = torch.zeros(2, 7, dtype=torch.bool)
    routing = ROUTERS[name]()(torch.randn(2, 7, D), signal(2, 7, mask))
    assert not total_weight(routing).any()
    assert routing.combine(routing.dispatch(torch.randn(2, 7, D))).eq(0).all()
    if isinstance(routing, Sparse):
        assert routing.counts.tolist() == [0] * E
    if isinstance(routing, Sparse) and routing.origin is not None:
        assert torch.stack([loss(routing, mask=mask) for loss in LOSSES.values()]).isfinite().all()


@pytest.mark.parametrize("name", sorted(ROUTERS.keys() - DRAWN - {"switch"}))
def test_nan_stays_in_its_item_and_changes_no_other(name):
    router, tokens = ROUTERS[name]().eval(), torch.randn(3, 7, D)
    spoilt = tokens.clone()
    spoilt[0, 2] = torch.nan
    plain, among = (router(each, signal(3, 7)) for each in (tokens, spoilt))
    answers = [routing.combine(routing.dispatch(each)) for routing, each in ((plain, tokens), (among, spoilt))]
    torch.testing.assert_close(answers[0][1:], answers[1][1:])
    torch.testing.assert_close(total_weight(plain)[1:], total_weight(among)[1:])


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_that_is_spoilt_gives_no_answer_that_looks_good(name):
    router = ROUTERS[name]().eval()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.fill_(torch.nan)
    tokens = torch.randn(2, 7, D)
    answer = router(tokens, signal(2, 7))
    answer = answer.combine(answer.dispatch(tokens))
    assert not list(router.parameters()) or (answer.isnan() | answer.eq(0)).all()


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_large_logits_gives_numbers(name, dtype):
    router = ROUTERS[name]().to(dtype)
    tokens = (torch.randn(2, 6, D) * 6e4).clamp(-6e4, 6e4).to(dtype)
    routing = router(tokens, signal(2, 6))
    assert total_weight(routing).isfinite().all()
    assert routing.combine(routing.dispatch(tokens)).dtype == dtype


@pytest.mark.parametrize("name", ROUTERS)
def test_saved_and_loaded_a_router_decides_the_same(name):
    router, tokens = ROUTERS[name]().eval(), torch.randn(2, 7, D)
    other = ROUTERS[name]().eval()
    state = router.state_dict()
    other.load_state_dict(load(save(state)) if state else state)
    torch.manual_seed(1)
    first = router(tokens, signal(2, 7))
    torch.manual_seed(1)
    second = other(tokens, signal(2, 7))
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(total_weight(first), total_weight(second))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_reach_the_router_and_padding_does_not_count(name):
    router = ROUTERS["mixtral"]()
    tokens, mask = torch.randn(3, 9, D), torch.ones(3, 9, dtype=torch.bool)
    mask[:, 6:] = False
    masked = LOSSES[name](sparse(router(tokens, signal(3, 9, mask))), mask=mask)
    torch.testing.assert_close(masked, LOSSES[name](sparse(router(tokens[:, :6], signal(3, 6)))))
    # A mask given to the loss alone is enough.
    torch.testing.assert_close(masked, LOSSES[name](sparse(router(tokens, signal(3, 9))), mask=mask))
    masked.backward()
    gradient = router.get_parameter("score.weight").grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0 or name == "gates"


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_notice_what_a_capacity_drops(name):
    router = ROUTERS["mixtral"]()
    assert isinstance(router, ComposedRouter)
    routing = sparse(router(torch.randn(3, 9, D), signal(3, 9)))
    dropped = replace(routing, index=torch.full_like(routing.index, NOBODY))
    if name != "gates":
        assert torch.equal(LOSSES[name](routing), LOSSES[name](dropped))
    else:
        assert LOSSES[name](dropped) == 0


def test_one_expert_takes_everything():
    router = ComposedRouter(Dot(D, 1), [Softmax()], partial(top_k, k=1))
    routing = sparse(router(torch.randn(2, 5, D), signal(2, 5)))
    assert routing.counts.tolist() == [10]
    for name, loss in LOSSES.items():
        if name not in ("group", "importance_of_time", "cost"):
            assert loss(routing).isfinite()
    assert losses.importance(routing) == 0
    assert losses.spread(routing) == 0
