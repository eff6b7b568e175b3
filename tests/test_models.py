import pytest
import torch

from fedsim.layers import Layers
from fedsim.models import MODELS


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_every_model_maps_images_to_logits(name: str, shape: tuple[int, int, int]) -> None:
    assert MODELS[name](shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_the_cnn_has_the_papers_number_of_parameters() -> None:
    # McMahan et al. 2017, section 3: 1,663,370 total parameters.
    assert sum(p.numel() for p in MODELS["cnn"]((1, 28, 28), 10).parameters()) == 1_663_370


def test_the_mlp_is_the_papers_2nn() -> None:
    # McMahan et al. 2017, section 3: 199,210 total parameters.
    assert sum(p.numel() for p in MODELS["mlp"]((1, 28, 28), 10).parameters()) == 199_210


def test_resnet18_without_normalisation_has_21_layers() -> None:
    # A convolution, 8 blocks of two, 3 projections and the classifier, as in Adilova et al. 2024.
    assert len(Layers.of(MODELS["resnet18"]((3, 32, 32), 10, norm="none", width=4))) == 21


def test_full_width_resnet18_has_torchvisions_parameters_but_the_stem() -> None:
    from torchvision.models import resnet18

    ours = {key: value.shape for key, value in MODELS["resnet18"]((3, 32, 32), 1000, norm="batch").state_dict().items()}
    theirs = {key: value.shape for key, value in resnet18().state_dict().items()}
    assert {key: shape for key, shape in ours.items() if theirs.get(key) != shape} == {"conv1.weight": (64, 3, 3, 3)}
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("mlp", (1, 8, 8), {"hidden": (4, 0)}, "hidden"),
        ("cnn", (1, 3, 8), {}, "too small"),
        ("resnet18", (1, 8, 8), {"width": 0}, "width = 0"),
        ("resnet18", (1, 8, 8), {"width": 3}, "even"),
    ],
)
def test_options_out_of_range_are_named(name: str, shape: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS[name](shape, 10, **options)
