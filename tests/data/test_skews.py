import numpy as np
import pytest
import torch

from fedsim.data.skews import FEATURES

IMAGES = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def skew(name: str, client: int, inputs: torch.Tensor = IMAGES, clients: int = 5, seed: int = 0, **options: object):
    return FEATURES[name](inputs, client, clients, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("client", [0, 3])
def test_a_skew_keeps_the_shape_and_the_inputs_and_is_the_same_each_time(name: str, client: int) -> None:
    before = IMAGES.clone()
    first, again = skew(name, client), skew(name, client)
    assert first.shape == IMAGES.shape
    assert torch.equal(first, again)
    assert torch.equal(IMAGES, before)


def test_quarter_turns_are_exact_and_counter_clockwise() -> None:
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    turned = [skew("rotation", client, image)[0, 0].tolist() for client in range(5)]
    assert turned == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]], [[1, 2], [3, 4]]]


def test_other_angles_agree_with_quarter_turns_at_ninety_degrees() -> None:
    almost = skew("rotation", 0, degrees=(89.9999,))
    assert torch.allclose(almost, skew("rotation", 0, degrees=(90.0,)), atol=1e-3)
    assert not torch.allclose(skew("rotation", 0, degrees=(30.0,)), IMAGES, atol=0.1)


def test_the_noises_variance_grows_in_proportion_to_the_client() -> None:
    zeros = torch.zeros(200, 1, 20, 20)
    variances = [float(skew("noise", client, zeros, variance=0.5).var()) for client in range(5)]
    assert variances == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], rel=0.02)


@pytest.mark.parametrize(
    ("name", "inputs", "options", "message"),
    [
        ("rotation", torch.zeros(2, 5), {}, r"rotation needs images, not inputs of shape \(5,\)"),
        ("rotation", IMAGES, {"degrees": ()}, r"degrees = \[\] must be one or more finite angles"),
        ("rotation", IMAGES, {"degrees": (0.0, float("nan"))}, r"nan\] must be one or more finite angles"),
        ("noise", torch.zeros(2, 5).long(), {}, "these are tokens"),
        ("noise", IMAGES, {"variance": -1.0}, "variance = -1.0"),
    ],
)
def test_what_a_skew_cannot_do_is_named(name: str, inputs: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        skew(name, 0, inputs, **options)
