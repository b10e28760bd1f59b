import pytest
import torch

from tactic.kernels.index.codes import encode
from tactic.kernels.index.codes_triton import encode_into


@pytest.mark.parametrize(("count", "dim"), [(1, 16), (33, 64), (70, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_codes_are_those_of_the_definition(device: str, count: int, dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    centroids = torch.randn(2, count + 3, dim, generator=generator)[:, 2 : count + 2].to(dtype).to(device)
    centroids[0, 0] = 0
    centroids[1, count // 2, 3] = torch.nan
    codes = torch.full((2, count + 5, dim), 99, dtype=torch.int8, device=device)
    factors = torch.full((2, count + 5), 99.0, device=device)
    encode_into(codes[:, 1 : count + 1], factors[:, 1 : count + 1], centroids)
    expected, by = encode(centroids)
    finite = by.isfinite()
    torch.testing.assert_close(factors[:, 1 : count + 1], by, equal_nan=True, atol=0, rtol=0)
    assert torch.equal(codes[:, 1 : count + 1][finite], expected[finite])
    for untouched in (codes[:, 0], codes[:, count + 1 :], factors[:, 0], factors[:, count + 1 :]):
        assert bool((untouched == 99).all())
