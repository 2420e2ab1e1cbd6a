"""Token pruning: what a loop over items and tokens does, within every budget, on the dense network's weights."""

from itertools import pairwise
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_measure_cost import counting
from tiny_vit import NARROWED, tiny

from nestor.models.pruned import Pruned, quarters
from nestor.ops.tokens import fuse


def naive(model, image, plan):
    """One picture, token by token, in a list of (state, patches that went into it): tokens (T, D) and logits."""
    dense, s = model.model, model.settings
    D, H = s.nest.widths[-1], s.nest.heads[-1]
    stream = [[row, None] for row in dense.embed(image[None])[0]]
    for patch, entry in enumerate(stream[s.prefix :]):
        entry[1] = [patch]
    fused = []

    def norm(x):
        return x / (x.square().mean() + s.eps).sqrt()

    for number, block in enumerate(dense.blocks):
        part, mlp = block.attention, block.mlp
        kvq = torch.stack([part.inward @ norm(x) + part.inward_bias[0] for x, _ in stream])
        key, value, query = (x.unflatten(1, (H, D // H)) for x in kvq.split(D, 1))
        shares = [(key[:, h] @ query[:, h].T / (D // H) ** 0.5).T.softmax(1) for h in range(H)]
        for i, entry in enumerate(stream):
            answer = torch.cat([shares[h][i] @ value[:, h] for h in range(H)])
            entry[0] = entry[0] + part.outward @ answer + part.outward_bias[0]
        if number in model.stages:
            before, after = list(pairwise(plan))[model.stages.index(number)]
            seen = {id(entry): sum(shares[h][0, i] for h in range(H)) for i, entry in enumerate(stream)}
            free = [entry for entry in stream[s.prefix :] if not any(entry is other for other in fused)]
            gone = sorted(free, key=lambda entry: -float(seen[id(entry)]))[after:]
            assert len(free) == before
            if gone:
                total = sum(seen[id(entry)] for entry in gone)
                mean = sum(entry[0] * seen[id(entry)] for entry in gone) / total
                stream = [entry for entry in stream if not any(entry is other for other in gone)]
                stream.append([mean, [entry[1][0] for entry in gone]])
                fused.append(stream[-1])
        for entry in stream:
            act = torch.nn.functional.gelu(mlp.inward @ norm(entry[0]) + mlp.inward_bias[0])
            entry[0] = entry[0] + mlp.outward @ act + mlp.outward_bias[0]

    def read(x):
        return dense.readout.weight @ norm(x) + dense.readout.bias[0]

    final = {patch: x for x, patches in stream[s.prefix :] for patch in patches}
    front = [read(x) for x, _ in stream[: s.prefix]]
    mean = torch.stack([read(x) for x in final.values()]).mean(0)
    logits = dense.head.linear(torch.cat([front[0], mean]))
    return torch.stack([*front, *(read(final[i]) for i in range(plan[0]))]), logits


@pytest.mark.parametrize(
    ("prefix", "depth", "stages", "plan"),
    [
        (1, 4, None, (16, 11, 6, 3)),
        (2, 4, None, (16, 16, 9, 9)),
        (3, 2, (0,), (16, 0)),
        (1, 3, (0, 1, 2), (16, 15, 14, 1)),
        (1, 1, None, (16, 5)),
        (2, 4, (1, 3), (16, 16, 16)),
    ],
)
@torch.no_grad()
def test_pruning_is_that_of_a_naive_loop(prefix, depth, stages, plan):
    model = Pruned(tiny(prefix=prefix, depth=depth, classes=3, head="class_mean"), stages=stages)
    images = torch.randn(3, 3, 16, 16)
    found = model.run(images, plan)
    assert found.logits is not None
    for item, image in enumerate(images):
        tokens, logits = naive(model, image, plan)
        torch.testing.assert_close(found.tokens[item], tokens, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.logits[item], logits, atol=1e-4, rtol=1e-4)


def test_fusing_by_hand():
    weight = torch.tensor([[9.0, 1.0, 4.0, 5.0, 3.0]])
    tokens = torch.tensor([[[7.0], [10.0], [20.0], [30.0], [40.0]]])
    merge = fuse(weight, 2, 1)
    merged, total = merge.merge(tokens, weight.unsqueeze(-1))
    # Patches 2 and 3 stay in their order behind the mean of patches 1 and 4, (10 * 1 + 40 * 3) / 4.
    assert merged.flatten().tolist() == [7, 32.5, 20, 30]
    assert total.flatten().tolist() == [9, 4, 4, 5]
    assert merge.target.tolist() == [[0, 1, 2, 3, 1]]
    # Of equal weights the first stay.
    assert fuse(torch.ones(1, 5), 3, 0).target.tolist() == [[1, 2, 3, 0, 0]]


@given(st.integers(0, 4), st.integers(1, 12), st.integers(0, 11), st.integers(0, 1000))
def test_those_that_stay_are_the_greatest_unchanged_and_in_order(protected, count, kept, seed):
    kept = min(kept, count - 1)
    draw = torch.Generator().manual_seed(seed)
    weight = torch.rand(2, protected + count, generator=draw)
    tokens = torch.randn(2, protected + count, 3, generator=draw)
    merge = fuse(weight, kept, protected)
    merged, _ = merge.merge(tokens, weight.unsqueeze(-1))
    assert merged.shape == (2, protected + 1 + kept, 3)
    for item in range(2):
        best = weight[item, protected:].topk(kept).indices.sort().values + protected
        assert torch.equal(merged[item, :protected], tokens[item, :protected])
        assert torch.equal(merged[item, protected + 1 :], tokens[item, best])
        assert torch.equal(merge.unmerge(merged)[item, best], tokens[item, best])


@pytest.mark.parametrize("head", [None, "class", "class_mean", "mean_then_norm", "attention"])
def test_at_full_budget_the_network_is_the_dense_one(head):
    dense = tiny(prefix=2, **({} if head is None else {"classes": 3, "head": head}))
    images = torch.randn(2, 3, 16, 16)
    found, expected = Pruned(dense)(images, budget=1.0), dense(images)
    assert torch.equal(found.tokens, expected.tokens)
    if head is not None:
        assert torch.equal(found.logits, expected.logits)


@torch.no_grad()
def test_every_token_that_stays_comes_back_to_its_place():
    # Blocks that write nothing leave each patch what it was.
    dense = tiny(depth=4, prefix=2)
    for block in dense.blocks:
        for part in (block.attention, block.mlp):
            part.outward.zero_()
            part.outward_bias.zero_()
    images = torch.randn(2, 3, 16, 24)
    model = Pruned(dense)
    for plan in ((24, 17, 9, 4), (24, 22, 20, 18), (24, 24, 1, 1), (24, 0, 0, 0)):
        same = torch.isclose(model.run(images, plan).tokens, dense(images).tokens, atol=1e-5).all(-1)
        assert same[:, :2].all()
        assert (same[:, 2:].sum(1) == plan[-1]).all()


@torch.no_grad()
def test_constant_pictures_stay_finite():
    dense = tiny(depth=4, classes=3)
    torch.nn.init.zeros_(dense.embed.position)
    model = Pruned(dense)
    for images in (torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 1e4)):
        found = model(images, budget=0.8)
        assert found.tokens.isfinite().all()
        assert found.logits.isfinite().all()
        assert torch.equal(found.tokens[0], found.tokens[1])


def test_patches_without_any_attention_still_have_a_mean():
    # A class key that outshines all others leaves the patches' shares of attention at exactly zero.
    dense = tiny(depth=1, classes=2)
    with torch.no_grad():
        dense.embed.prefix.mul_(50)
        dense.blocks[0].attention.inward[:24] = dense.blocks[0].attention.inward[48:] * 300
    found = Pruned(dense).run(torch.randn(2, 3, 16, 16), (16, 4))
    assert found.logits is not None
    found.logits.sum().backward()
    assert found.tokens.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in dense.parameters())


@pytest.mark.parametrize("head", ["class", "class_mean", "attention"])
def test_gradients_reach_all_weights(head):
    model = Pruned(tiny(depth=4, classes=3, head=head))
    images = torch.randn(2, 3, 16, 16)
    logits = model.run(images, (16, 10, 6, 3)).logits
    assert logits is not None
    logits.square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_gradients_pass_the_weights_of_the_mean():
    # With no patch kept, and attention that writes nothing, the class token has no other way to the mean patch.
    model = Pruned(tiny(depth=1, classes=2, head="mean"))
    torch.nn.init.zeros_(model.model.blocks[0].attention.outward)
    logits = model.run(torch.randn(1, 3, 16, 16), (16, 0)).logits
    assert logits is not None
    logits[0, 0].backward()
    found = model.model.embed.prefix.grad
    assert found is not None
    assert found.any()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.floats(0, 1), st.sampled_from([(4, None), (4, (1,)), (7, None), (3, (0, 1, 2))]))
def test_pruning_keeps_every_budget_it_can_reach(patches, share, shape):
    depth, stages = shape
    model = Pruned(tiny(depth=depth), stages=stages)
    low, full = model.least_budget(patches), model.full_macs(patches)
    budget = low + share * (1 - low)
    plan = model.plan(patches, budget)
    assert len(plan) == len(model.stages) + 1
    assert plan[0] == patches
    assert model.macs(plan) / full <= budget
    # The same fraction in every stage: there is a rate of which these are the roundings, or almost.
    rates = [max((n - 1) / patches, 0) ** (1 / i) for i, n in enumerate(plan[1:], 1)]
    ends = [(n / patches) ** (1 / i) for i, n in enumerate(plan[1:], 1)]
    assert max(rates) <= min(ends) + 1e-9
    # No greater rate would do.
    for step in range(100):
        rate = max(rates) + (1 - max(rates)) * (step + 1) / 100
        more = (patches, *(ceil(patches * rate**i - 1e-9) for i in range(1, len(plan))))
        assert more == plan or model.macs(more) / full > budget or all(a <= b for a, b in zip(more, plan, strict=True))


@pytest.mark.parametrize("patches", [64, 196])
def test_a_budget_is_missed_by_less_than_a_token(patches):
    model = Pruned(tiny(depth=12))
    full = model.full_macs(patches)
    token = model.macs((patches,) * 4) - model.macs((patches - 2,) * 4)
    for budget in (0.9, 0.75, 0.6, 0.5):
        assert 0 <= budget * full - model.macs(model.plan(patches, budget)) < token


def test_stages_are_those_of_the_paper_or_those_given():
    assert quarters(12) == (3, 6, 9)
    assert quarters(24) == (6, 12, 18)
    assert quarters(2) == (0, 1)
    assert quarters(1) == (0,)
    assert Pruned(tiny(depth=12)).stages == (3, 6, 9)
    assert Pruned(tiny(depth=3), stages=[0, 2]).stages == (0, 2)


@pytest.mark.parametrize("head", [None, "class", "class_mean", "mean", "attention"])
def test_macs_are_those_of_the_network_as_it_runs(head):
    model = Pruned(tiny(depth=4, prefix=2, **({} if head is None else {"classes": 3, "head": head})))
    images = torch.randn(1, 3, 24, 24)
    for budget in (1.0, 0.8, 0.6, model.least_budget(36)):
        plan = model.plan(36, budget)
        with counting() as counter:
            model(images, budget)
        assert model.macs(plan) == pytest.approx(counter.get_total_flops() / 2, rel=0.001)
        assert model.macs(plan) <= budget * model.full_macs(36) * (1 + 1e-12)
    assert model.full_macs(36) == model.model.full_macs(36)


def test_the_budget_may_be_set_or_given():
    model = Pruned(tiny(classes=2))
    images = torch.randn(1, 3, 24, 24)
    model.budget = 0.8
    assert torch.equal(model(images).logits, model(images, budget=0.8).logits)
    assert not torch.equal(model(images).logits, model(images, budget=1.0).logits)


def test_half_precision_runs():
    model = Pruned(tiny(classes=2)).to(torch.bfloat16)
    out = model(torch.randn(1, 3, 24, 24, dtype=torch.bfloat16), budget=0.8)
    assert out.logits.dtype == out.tokens.dtype == torch.bfloat16
    assert out.tokens.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert Pruned(tiny(classes=2))(torch.randn(1, 3, 24, 24), budget=0.8).logits.isfinite().all()


def test_pruning_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="with 1 expert; got 4"):
        Pruned(tiny(NARROWED))
    with pytest.raises(ValueError, match=r"asks the class token.*got a network with prefix 0"):
        Pruned(tiny(prefix=0, head="mean"))
    for stages in ((), (2,), (-1, 0), (1, 0), (0, 0)):
        with pytest.raises(ValueError, match=r"stages must be numbers of blocks from 0 to 1, at least one"):
            Pruned(tiny(), stages=stages)
    model = Pruned(tiny())
    for budget in (0.01, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"budget must lie in \[0\.\d+, 1\] for pruning 36 patches.*got {budget}"):
            model.plan(36, budget)
    for plan in ((16, 8), (15, 8, 4), (16, 4, 8), (16, 8, -1)):
        with pytest.raises(ValueError, match=r"a plan must name the 16 patches and how many of them each of 2 stages"):
            model.run(torch.randn(1, 3, 16, 16), plan)
    with pytest.raises(ValueError, match="images must be"):
        model(torch.randn(1, 3, 15, 16))
    for kept in (-1, 7):
        with pytest.raises(ValueError, match=rf"kept must lie in \[0, 6\] for 7 tokens; got {kept}"):
            fuse(torch.ones(1, 8), kept, 1)
