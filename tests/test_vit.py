"""Laws of the elastic vision transformer."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NESTS, naive_tokens, small

from nestor.layers.nested import Nest
from nestor.models.vit import ViT, ViTSettings

NESTED = [name for name in NESTS if name != "dense"]


def images(count=2, side=16, seed=1):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def set_alpha(model, value):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.fill_(value)


def budgets(model, patches=16):
    low = model.least_budget(patches)
    return [low, low + 0.3 * (1 - low), low + 0.7 * (1 - low), 1.0]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "swiglu"])
@pytest.mark.parametrize("name", NESTS)
def test_sorted_path_equals_the_naive_one_gradients_included(name, activation):
    model = small(name, activation=activation)
    x = images()
    for budget in budgets(model) if name != "dense" else [1.0]:
        output = model(x, budget=budget)
        index = output.routings[0].index.squeeze(-1) if output.routings else torch.zeros(2, 16, dtype=torch.long)
        naive = naive_tokens(model, x, index)
        torch.testing.assert_close(output.tokens, naive, rtol=1e-4, atol=1e-5)
        probe = torch.randn_like(naive)
        parameters = [p for key, p in model.named_parameters() if not key.startswith("head.")]
        fast = torch.autograd.grad((output.tokens * probe).sum(), parameters, allow_unused=True)
        slow = torch.autograd.grad((naive * probe).sum(), parameters, allow_unused=True)
        for ours, theirs in zip(fast, slow, strict=True):
            if theirs is None or ours is None:
                assert ours is None or ours.abs().max() == 0
                assert theirs is None or theirs.abs().max() == 0
            else:
                torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", NESTED)
def test_full_budget_without_gate_equals_the_dense_network(name):
    nested, dense = small(name), small("dense")
    state = nested.state_dict()
    set_alpha(nested, 0.0)
    own = {}
    for key in dense.state_dict():
        source = nested.readout.map(NESTS[name].experts - 1) if key == "readout.weight" else state[key]
        own[key] = source[-1:] if key.endswith("ward_bias") or key == "readout.bias" else source
    dense.load_state_dict(own)
    ours, theirs = nested(images(), budget=1.0), dense(images())
    torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NESTED)
def test_spent_macs_never_exceed_the_budget_and_miss_it_by_less_than_a_token(name):
    model = small(name)
    for patches in (16, 64, 400):
        full = model.full_macs(patches)
        token = (full - model.full_macs(patches - 1)) / full
        for step in range(21):
            low = model.least_budget(patches)
            budget = low + (1 - low) * step / 20
            counts = model.plan(patches, budget)
            spent = model.macs(counts) / full
            assert sum(counts) == patches
            assert budget - token < spent <= budget + 1e-12


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=5),
    st.booleans(),
    st.integers(1, 6),
    st.integers(1, 6),
    st.floats(0, 1),
    st.integers(0, 2),
)
def test_any_widths_any_picture_size(steps, skip, rows, columns, place, prefix):
    widths = [4 * sum(steps[: i + 1]) for i in range(len(steps))]
    hidden, heads = [3 * w for w in widths], [2] * len(widths)
    if skip:
        widths, hidden, heads = [0, *widths], [0, *hidden], [0, *heads]
    nest = Nest(widths=tuple(widths), hidden=tuple(hidden), heads=tuple(heads))
    if skip and prefix == 0:
        return
    scores = ("trailing", "linear") if nest.experts > 1 else ()
    model = ViT(ViTSettings(nest=nest, depth=1, patch=2, grid=(3, 3), prefix=prefix, nominal=6, scores=scores))
    patches = rows * columns
    low = model.least_budget(patches)
    budget = low + place * (1 - low) if nest.experts > 1 else 1.0
    output = model(torch.randn(2, 3, 2 * rows, 2 * columns), budget=budget)
    assert output.tokens.shape == (2, patches + prefix, widths[-1])
    assert output.tokens.isfinite().all()
    if output.routings:
        counts = [(output.routings[0].index == j).sum(1).flatten().tolist() for j in range(nest.experts)]
        assert counts == [[n, n] for n in model.plan(patches, budget)]


@pytest.mark.parametrize("name", NESTED)
def test_pictures_do_not_touch_each_other(name):
    model = small(name).eval()
    x = images(3)
    together = model(x, budget=0.6).tokens
    alone = torch.cat([model(one.unsqueeze(0), budget=0.6).tokens for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_budget_is_set_between_calls_or_given_with_a_call():
    model = small()
    x = images()
    model.budget = 0.5
    half = model(x).logits
    model.budget = 1.0
    full = model(x).logits
    assert not torch.allclose(half, full)
    assert torch.equal(model(x, budget=0.5).logits, half)
    assert model.budget == 1.0
    assert torch.equal(model(x).logits, full)


def test_prefix_tokens_keep_full_width():
    model = small("depth", prefix=3, head="class")
    least = model(images(), budget=model.least_budget(16)).tokens
    assert not torch.equal(least[:, 0], least[:, 1])
    skipped = least[:, 3:]
    assert torch.equal(skipped, model.readout.bias[0].expand_as(skipped))


@pytest.mark.parametrize("head", ["class", "mean", "mean_then_norm", "class_mean", "class_distill", "attention"])
def test_every_parameter_gets_a_gradient(head):
    model = small(head=head, prefix=2)
    output = model(images(), budget=0.6)
    (output.logits.square().sum() + output.tokens.square().sum()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.mark.parametrize("scores", [("linear",), ("trailing", "linear"), ("loss",)])
@pytest.mark.parametrize(("alpha", "learns"), [(0.0, False), (0.5, True)])
def test_router_learns_through_the_gate_only_once_alpha_is_positive(scores, alpha, learns):
    model = small(scores=scores)
    set_alpha(model, alpha)
    model(images(), budget=0.6).tokens.square().sum().backward()
    named = dict(model.named_parameters())
    weights = [p.grad for name, p in named.items() if name.startswith("router.") and name.endswith("weight")]
    assert all(grad is not None and bool(grad.any()) == learns for grad in weights)
    gates = [p.grad for name, p in named.items() if name.endswith("alpha")]
    assert all(grad is not None and grad != 0 for grad in gates)


@pytest.mark.parametrize("fill", [0.0, 1.0, 1e4, -1e-8])
def test_constant_huge_and_tiny_pictures_stay_finite(fill):
    output = small()(torch.full((2, 3, 16, 16), fill), budget=0.5)
    assert output.tokens.isfinite().all()
    assert output.logits.isfinite().all()


def test_half_precision_stays_near_single():
    model = small().eval()
    x = images()
    single = model(x, budget=0.6)
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        full = half(x.bfloat16(), budget=1.0).tokens.float()
    assert (full - model(x, budget=1.0).tokens).norm() / full.norm() < 0.02
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        cast = model(x, budget=0.6)
    assert cast.logits is not None
    assert (cast.logits.float() - single.logits).norm() / single.logits.norm() < 0.05


def test_checkpointing_changes_nothing_but_memory():
    model = small()
    other = copy.deepcopy(model)
    other.checkpointing = True
    for network in (model, other):
        network(images(), budget=0.5).logits.square().sum().backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_deepcopy_is_independent():
    model = small()
    twin = copy.deepcopy(model)
    twin.budget = 0.5
    twin.embed.weight.data.zero_()
    assert model.budget == 1.0
    assert model.embed.weight.any()


def test_compiled_network_equals_the_plain_one_at_several_budgets():
    torch._dynamo.reset()
    model = small().eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for budget in (1.0, 0.5, 0.7):
            plain, fast = model(images(), budget=budget), compiled(images(), budget=budget)
            torch.testing.assert_close(fast.logits, plain.logits)
            torch.testing.assert_close(fast.tokens, plain.tokens)


def test_bad_input_is_refused_with_the_repair():
    model = small()
    with pytest.raises(ValueError, match=r"budget must lie in \[0\.\d+, 1\] .* got 0.05. Add a narrower width"):
        model.budget = 0.05
    with pytest.raises(ValueError, match="budget must lie in"):
        model(images(), budget=1.5)
    with pytest.raises(ValueError, match="multiples of the patch, 4; got \\(2, 3, 15, 16\\)"):
        model(torch.zeros(2, 3, 15, 16))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        model(torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="widths must increase"):
        Nest(widths=(12, 6, 24), hidden=(1, 1, 1), heads=(1, 1, 1))
    with pytest.raises(ValueError, match="widths must increase"):
        Nest(widths=(12, 12), hidden=(1, 1), heads=(1, 1))
    with pytest.raises(ValueError, match="same experts; got 2, 1 and 2"):
        Nest(widths=(12, 24), hidden=(1,), heads=(1, 1))
    with pytest.raises(ValueError, match="hidden must not fall"):
        Nest(widths=(12, 24), hidden=(2, 1), heads=(1, 1))
    with pytest.raises(ValueError, match="at least one hidden unit"):
        Nest(widths=(12, 24), hidden=(0, 1), heads=(1, 1))
