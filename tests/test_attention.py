import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from nestor.ops.attention import attend, by_matmul


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value)


def parts(n, m, dtype, seed=0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, n, 8), (2, 3, m, 8), (2, 3, m, 8)]
    return [torch.randn(shape, generator=draw).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 9), (17, 17), (1, 40)])
def test_matmuls_are_torchs_attention_gradients_included(n, m):
    ours, theirs = parts(n, m, torch.float64), parts(n, m, torch.float64)
    a, b = by_matmul(*ours), exact(*theirs)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_and_without_gradient_the_answer_is_near_the_exact_one(dtype):
    given = parts(6, 11, dtype)
    wanted = exact(*(part.double() for part in given))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = attend(*given)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-2 if dtype == torch.bfloat16 else 1e-6)


def test_values_that_are_strided_views_give_what_copies_give():
    joined = torch.randn(2, 7, 72, dtype=torch.bfloat16, requires_grad=True)
    views = [part.unflatten(-1, (3, 8)).transpose(1, 2) for part in joined.split(24, -1)]
    copies = [part.detach().contiguous().requires_grad_() for part in views]
    torch.testing.assert_close(attend(*views), attend(*copies))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [16, 17, 31, 32, 146])
@pytest.mark.parametrize("merged", [False, True])
def test_any_number_of_keys_gives_the_exact_answer(dtype, m, merged):
    given = parts(5, m, dtype)
    size = torch.randint(1, 4, (2, m, 1), generator=torch.Generator().manual_seed(1)) if merged else None
    bias = None if size is None else size.double().log().transpose(1, 2).unsqueeze(1)
    query, key, value = (part.double() for part in given)
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=bias)
    with torch.no_grad():
        found = attend(given[0], given[1], given[2], None if size is None else size.float())
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-2 if dtype == torch.bfloat16 else 1e-6)
