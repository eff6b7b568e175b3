"""The distance between two models is that of their entries as one vector, however large and of whatever type."""

import math

import pytest
import torch

from fedsim.models.distance import distance
from fedsim.models.params import Params, flat_copy


def models(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Params, Params]:
    """Return two models with a scalar, an empty entry and an integer one."""
    stream = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 70), "b": (), "c": (0,), "d": (5,)}
    one, other = (
        {key: (scale * torch.randn(shape, generator=stream, dtype=torch.float64)).to(dtype) for key, shape in each}
        for each in (shapes.items(), shapes.items())
    )
    return one | {"n": torch.tensor(3)}, other | {"n": torch.tensor(5)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sums", [torch.float32, torch.float64])
def test_it_is_the_norm_of_the_difference_as_one_vector(dtype: torch.dtype, sums: torch.dtype) -> None:
    one, other = models(dtype)
    keys = [key for key in one if key != "n"]
    expected = torch.cat([(one[key].double() - other[key].double()).reshape(-1) for key in keys]).norm().item()
    tolerance = 1e-2 if dtype.itemsize < 4 else 1e-5
    for ends in ((one, other), (flat_copy(one), flat_copy(other)), (flat_copy(one), other)):
        assert distance(*ends, sums) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e30])
def test_squares_that_leave_the_range_of_float32_are_summed_in_float64(scale: float) -> None:
    one, other = models(scale=scale)
    expected = distance(*models()) * scale
    assert distance(one, other, torch.float32) == pytest.approx(expected, rel=1e-5)


def test_real_and_imaginary_parts_count_and_entries_that_only_the_other_has_do_not() -> None:
    one, other = {"a": torch.tensor([3 + 4j, 0])}, {"a": torch.zeros(2, dtype=torch.complex64), "b": torch.ones(2)}
    assert distance(one, other) == pytest.approx(5)
    assert distance({}, other) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_it_is_not_finite_if_an_entry_is_not(value: float) -> None:
    one, other = models()
    one["a"][3, 3] = value
    assert not math.isfinite(distance(one, other, torch.float32))


def test_equal_models_have_none_unless_they_are_not_finite() -> None:
    one = {"a": torch.ones(7), "b": torch.ones(3)}
    assert distance(flat_copy(one), flat_copy(one), torch.float32) == 0
    one["b"][1] = math.inf
    assert not math.isfinite(distance(flat_copy(one), flat_copy(one), torch.float32))
