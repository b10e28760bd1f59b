import torch

from tactic.kernels.index.codes import decode, encode


def test_codes_are_within_half_a_step() -> None:
    centroids = (
        torch.randn(3, 50, 24, generator=torch.Generator().manual_seed(1))
        * torch.logspace(-6, 6, 50)[:, None]
    )
    codes, factors = encode(centroids)
    assert codes.dtype == torch.int8
    assert factors.shape == (3, 50)
    assert bool((codes.abs().amax(-1) == 127).all())
    step = centroids.abs().amax(-1, keepdim=True) / 127
    assert bool(((decode(codes, factors) - centroids).abs() <= 0.501 * step).all())


def test_nothing_is_nothing() -> None:
    codes, factors = encode(torch.zeros(2, 4))
    assert not codes.any()
    assert torch.equal(decode(codes, factors), torch.zeros(2, 4))


def test_what_is_not_finite_is_told() -> None:
    centroids = torch.tensor([[1.0, torch.nan], [torch.inf, 1.0], [2.0, -1.0]])
    decoded = decode(*encode(centroids))
    assert decoded.isfinite().all(-1).tolist() == [False, False, True]
