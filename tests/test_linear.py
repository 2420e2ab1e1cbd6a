import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nestor.ops.linear import ACTIVATIONS, activated, added, linear, rows_per_unit

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}
SIZES = st.integers(1, 40)


def parts(B, n, d, h, dtype, seed=0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, a slice of a larger matrix, its bias and what the answer is added to."""
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    weight = drawn(2 * h, d + 3) * d**-0.5
    x, bias, onto = drawn(B, n, d), drawn(h), drawn(B, n, h)
    return x.to(dtype), weight.to(dtype)[:h, :d], bias.to(dtype), onto.to(dtype)


def near(found, wanted, dtype) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(deadline=None)
@given(B=st.integers(0, 3), n=SIZES, d=SIZES, h=st.integers(1, 20), strided=st.booleans())
def test_every_way_is_near_the_plain_one_in_double_precision(dtype, B, n, d, h, strided):
    x, weight, bias, onto = parts(B, n, d, 2 * h, dtype)
    if strided:
        x, onto = (part.transpose(0, 1).contiguous().transpose(0, 1) for part in (x, onto))
    else:
        weight = weight.contiguous()
    wanted = F.linear(x.double(), weight.double(), bias.double())
    with torch.inference_mode():
        near(linear(x, weight, bias), wanted, dtype)
        near(added(x, weight, bias, onto), onto.double() + wanted, dtype)
        for name, apply in ACTIVATIONS.items():
            near(activated(x, weight, bias, name), apply(wanted), dtype)


def test_a_slice_that_many_rows_share_is_copied_and_says_the_same():
    x, weight, bias, onto = parts(4, 200, 8, 24, torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(added(x, weight, bias, onto), added(x, weight.contiguous(), bias, onto))
        few = added(x[:, :1], weight, bias, onto[:, :1])
        torch.testing.assert_close(few, added(x, weight, bias, onto)[:, :1], rtol=0, atol=4e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_where_a_gradient_is_wanted_it_is_that_of_the_plain_layer(dtype, name):
    ours, theirs = ([part.clone().requires_grad_() for part in parts(2, 5, 6, 8, dtype)] for _ in range(2))
    wide = 8 // rows_per_unit(name)
    one, weight, bias, onto = ours
    found = added(activated(one, weight, bias, name), torch.eye(wide, dtype=dtype), bias[:wide], onto[..., :wide])
    one, weight, bias, onto = theirs
    hidden = ACTIVATIONS[name](F.linear(one, weight, bias))
    wanted = onto[..., :wide] + F.linear(hidden, torch.eye(wide, dtype=dtype), bias[:wide])
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    wanted.sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_under_autocast_the_answer_has_its_precision():
    x, weight, bias, onto = parts(1, 4, 6, 8, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
        assert activated(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), "gelu").dtype == torch.bfloat16
        assert added(x, weight, bias, onto).dtype == torch.float32


def test_without_onednn_the_plain_way_is_taken(monkeypatch):
    given_parts = parts(3, 7, 16, 8, torch.bfloat16)
    with torch.no_grad():
        wanted = added(*given_parts)
        monkeypatch.setattr("nestor.ops.linear._READY", False)
        found = added(*given_parts)
    torch.testing.assert_close(found, wanted, rtol=0, atol=4e-2)
