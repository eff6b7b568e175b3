import pytest
import torch
from torch import nn

from fedsim.models.layers import Layers

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
        ("(" * 1000 + "conv1" + ")" * 1000, "nested more than 50 deep"),
        ("!" * 1000 + "conv1", "nested more than 50 deep"),
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
    assert layers["bn1"].statistics == ("bn1.running_mean", "bn1.running_var")
    assert layers.keys(("bn1",), buffers=False) == ("bn1.weight", "bn1.bias")


class Tied(nn.Module):
    """A language model whose classifier has the embedding's weight and a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.scale = nn.Parameter(torch.ones(2))
        self.hidden = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 7)
        self.decoder.weight = self.embedding.weight


def test_a_tied_tensor_is_in_one_layer_under_its_first_key_and_counts_once() -> None:
    layers = Layers.of(Tied())
    assert layers.names == ("scale", "embedding", "hidden")
    assert layers["embedding"].parameters == ("embedding.weight", "decoder.bias")
    assert layers["embedding"].size == (7 * 3 + 7) * 4
    assert layers.keys(layers.names) == ("scale", "embedding.weight", "decoder.bias", "hidden.weight", "hidden.bias")


def test_aliases_are_the_further_keys_of_tied_tensors() -> None:
    layers = Layers.of(Tied())
    assert layers.aliases == {"decoder.weight": "embedding.weight"}
    assert layers.of_key("decoder.weight") == layers.of_key("decoder.bias") == "embedding"
    assert Layers.of(NET).aliases == {}


def test_a_classifier_that_is_tied_to_the_embedding_makes_it_the_head() -> None:
    layers = Layers.of(Tied())
    assert layers.group("head").layers == ("embedding",)
    assert layers.group("body").layers == ("scale", "hidden")
    assert layers["embedding"].kind == "linear"


def test_a_module_that_is_used_under_two_names_is_one_layer() -> None:
    shared = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    layers = Layers.of(nn.ModuleDict({"first": shared, "between": nn.Linear(3, 3), "again": shared}))
    assert layers.names == ("first.0", "first.1", "between")
    assert layers.aliases == {
        f"again.{key}": f"first.{key}"
        for key in ("0.weight", "0.bias", "0.running_mean", "0.running_var", "1.weight", "1.bias")
    }
    assert layers.group("head").layers == ("first.1",)
    assert layers.group("norm").layers == ("first.0",)


def test_frozen_batch_normalisation_of_torchvision_is_a_norm() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    layers = Layers.of(nn.Sequential(nn.Conv2d(1, 2, 3), FrozenBatchNorm2d(2)))
    assert layers.group("norm").layers == ("1",)
    assert layers["1"].statistics == ("1.weight", "1.bias", "1.running_mean", "1.running_var")
