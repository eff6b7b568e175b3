"""The error of averaging factors instead of products, against its closed form."""

import torch

from fedsim.analysis.products import product_error


def test_the_error_is_the_weighted_covariance_of_the_factors() -> None:
    stream = torch.manual_seed(0)
    weights = [3.0, 1.0, 4.0]
    firsts = [torch.randn(2, 5, generator=stream, dtype=torch.float64) for _ in weights]
    seconds = [torch.randn(4, 2, generator=stream, dtype=torch.float64) for _ in weights]
    p = [weight / 8 for weight in weights]
    first, second = (sum(w * each for w, each in zip(p, parts, strict=True)) for parts in (firsts, seconds))
    terms = [w * (b - second) @ (a - first) for w, a, b in zip(p, firsts, seconds, strict=True)]
    pairs = [p[i] * p[j] / 2 * (seconds[i] - seconds[j]) @ (firsts[i] - firsts[j]) for i in range(3) for j in range(3)]
    mean = sum(w * b @ a for w, a, b in zip(p, firsts, seconds, strict=True))
    distance, size = product_error(firsts, seconds, weights, first, second)
    torch.testing.assert_close(distance, float(sum(terms).norm()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(distance, float(sum(pairs).norm()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(size, float(mean.norm()), rtol=1e-12, atol=1e-12)
    assert product_error([firsts[0]] * 3, seconds, weights, firsts[0], second)[0] < 1e-14
