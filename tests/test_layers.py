import pytest
import torch
from torch import nn

from fedsim.layers import Layers
from fedsim.models import MODELS

NET = nn.Sequential()
for name, module in {
    "conv1": nn.Conv2d(1, 4, 3),
    "bn1": nn.BatchNorm2d(4),
    "conv2": nn.Conv2d(4, 4, 3),
    "fc1": nn.Linear(4, 5),
    "fc2": nn.Linear(5, 2),
}.items():
    NET.add_module(name, module)


@pytest.fixture
def layers() -> Layers:
    return Layers.of(NET)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("all", "conv1 bn1 conv2 fc1 fc2"),
        ("none", ""),
        ("head", "fc2"),
        ("body", "conv1 bn1 conv2 fc1"),
        ("norm", "bn1"),
        ("first:2", "conv1 bn1"),
        ("last:3", "conv2 fc1 fc2"),
        ("conv*", "conv1 conv2"),
        ("fc2 | conv1", "conv1 fc2"),
        ("!head", "conv1 bn1 conv2 fc1"),
        ("all - norm", "conv1 conv2 fc1 fc2"),
        ("all - norm - fc1 | fc1", "conv1 conv2 fc1 fc2"),
        ("all - (norm | fc1)", "conv1 conv2 fc2"),
        ("!norm - head", "conv1 conv2 fc1"),
        ("!(conv* | fc*)", "bn1"),
        ("!!head", "fc2"),
        ("  head|norm ", "bn1 fc2"),
    ],
)
def test_the_layer_language(layers: Layers, expression: str, expected: str) -> None:
    assert " ".join(layers.group(expression)) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("hed*", "'hed*' matches nothing; layers are: conv1, bn1, conv2, fc1, fc2"),
        ("first:9", "from 1 to 5"),
        ("last:0", "from 1 to 5"),
        ("", "pattern is missing"),
        ("conv1 |", "pattern is missing"),
        ("| conv1", "pattern is missing before '|'"),
        ("(conv1", "parenthesis"),
        ("conv1 conv2", "'conv2' is left over"),
        ("!", "pattern is missing"),
    ],
)
def test_an_expression_that_means_nothing_is_an_error(layers: Layers, expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("*", r"\*").replace("|", r"\|")):
        layers.group(expression)


def test_norm_without_normalisation_and_head_without_a_linear_layer_are_errors() -> None:
    plain = Layers.of(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(ValueError, match="'norm' matches nothing"):
        plain.group("norm")
    with pytest.raises(ValueError, match="linear"):
        plain.group("head")


def test_integer_buffers_are_in_no_layer(layers: Layers) -> None:
    assert layers["bn1"].parameters == ("bn1.weight", "bn1.bias")
    assert layers["bn1"].buffers == ("bn1.running_mean", "bn1.running_var")
    assert layers.keys(("bn1",), buffers=False) == ("bn1.weight", "bn1.bias")


def test_tied_parameters_share_one_layer_and_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 3)
            self.scale = nn.Parameter(torch.ones(2))
            self.head = nn.Linear(3, 7)
            self.head.weight = self.embedding.weight

    layers = Layers.of(Tied())
    assert set(layers["embedding"].parameters) == {"embedding.weight", "head.weight"}
    assert layers["embedding"].size == 7 * 3 * 4
    assert layers["head"].parameters == ("head.bias",)
    assert layers["scale"].parameters == ("scale",)


@pytest.mark.parametrize(
    ("name", "options"),
    [("mlp", {}), ("cnn", {}), *(("resnet18", {"norm": norm, "width": 4}) for norm in ("none", "group", "batch"))],
)
def test_every_floating_point_entry_of_a_model_is_in_exactly_one_layer(name: str, options: dict) -> None:
    model = MODELS[name]((1, 8, 8), 10, **options)
    layers = Layers.of(model)
    keys = [key for layer in layers for key in layer.keys]
    assert sorted(keys) == sorted(key for key, value in model.state_dict().items() if value.is_floating_point())
    head = layers.group("head")
    assert layers.group("head | body").layers == layers.names
    assert model.state_dict()[f"{head.layers[0]}.weight"].shape[0] == 10
    assert sum(layer.size for layer in layers) == sum(
        value.numel() * 4 for value in model.state_dict().values() if value.is_floating_point()
    )
