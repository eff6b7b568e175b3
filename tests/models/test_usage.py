"""The order of layers and the head, from what a model does on a few inputs."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from fedsim.models.layers import Layers, describe_

INPUTS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Modules by name, in the order of their registration, and what is done with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self._forward(self, inputs)


def head_first() -> nn.Module:
    return Net(lambda net, x: net.classifier(net.encoder(x)), classifier=nn.Linear(4, 3), encoder=nn.Linear(6, 4))


def projector_after() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        hidden = net.body(x)
        net.projector(hidden)  # of a loss that is not there in evaluation
        return net.fc(hidden)

    return Net(forward, body=nn.Linear(6, 4), fc=nn.Linear(4, 3), projector=nn.Linear(4, 8))


def pooled_convolution() -> nn.Module:
    return Net(
        lambda net, x: net.last(net.first(x).relu()).mean((2, 3)),
        last=nn.Conv2d(4, 3, 1),
        first=nn.Conv2d(1, 4, 3),
        unused=nn.Linear(3, 3),
    )


def temperature_and_prior() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        logits = net.fc(net.body(x)) / net.temperature
        return net.norm(logits + net.prior.weight).log_softmax(1)

    return Net(
        forward,
        temperature=nn.Parameter(torch.ones(())),
        prior=nn.Linear(3, 1),
        norm=nn.BatchNorm1d(3),
        fc=nn.Linear(4, 3),
        body=nn.Linear(6, 4),
    )


def cosine() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return 10 * linear(normalize(net.body(x)), normalize(net.fc.weight))

    return Net(forward, fc=nn.Linear(4, 3), body=nn.Linear(6, 4))


def prototypes() -> nn.Module:
    return Net(
        lambda net, x: -torch.cdist(net.body(x), net.centres),
        body=nn.Linear(6, 4),
        centres=nn.Parameter(torch.randn(3, 4)),
    )


def written_out() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return (net.body(x)[:, None] * net.fc.weight).sum(2) * net.scale

    return Net(forward, fc=nn.Linear(4, 3), body=nn.Linear(6, 4), scale=nn.Parameter(torch.ones(1, 3)))


def distances() -> nn.Module:
    return Net(
        lambda net, x: -(net.body(x)[:, None] - net.centres).square().sum(2),
        centres=nn.Parameter(torch.randn(3, 4)),
        body=nn.Linear(6, 4),
    )


def examples_last() -> nn.Module:
    return Net(
        lambda net, x: (net.w.t() @ net.body(x).t()).t(), w=nn.Parameter(torch.randn(4, 3)), body=nn.Linear(6, 4)
    )


class Adapted(nn.Module):
    """A frozen linear layer with an adapter of low rank."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.t() @ self.up.t()


def adapters() -> nn.Module:
    return Net(lambda net, x: net.fc(net.body(x).relu()), fc=Adapted(4, 3), body=Adapted(6, 4))


def written_into_place() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 3)
        logits[:, :] = net.fc(net.body(x))
        logits *= 2
        return logits

    return Net(forward, fc=nn.Linear(4, 3), body=nn.Linear(6, 4))


def depends_on_data() -> nn.Module:
    return Net(
        lambda net, x: net.fc(net.body(x) if x.sum() > 1e9 else net.other(x)),
        fc=nn.Linear(4, 3),
        body=nn.Linear(6, 4),
        other=nn.Linear(6, 4),
    )


def compiled() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its compiler deprecated
        fc = torch.jit.script(nn.Linear(4, 3))
    return Net(lambda net, x: net.fc(net.body(x)), fc=fc, body=nn.Linear(6, 4))


def without_gradient() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = net.body(x)
        return net.fc(hidden)

    return Net(forward, fc=nn.Linear(4, 3), body=nn.Linear(6, 4))


def one_layer_twice() -> nn.Module:
    return Net(
        lambda net, x: net.fc(net.same(net.middle(net.same(x)))),
        middle=nn.Linear(6, 6),
        fc=nn.Linear(6, 3),
        same=nn.Linear(6, 6),
    )


def recurrent() -> nn.Module:
    return Net(
        lambda net, x: net.fc(net.lstm(x.view(len(x), 3, 2))[0][:, -1]),
        fc=nn.Linear(4, 3),
        lstm=nn.LSTM(2, 4, batch_first=True),
    )


def attention() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = x.view(len(x), 3, 2)
        return net.fc(net.attention(x, x, x)[0].mean(1))

    return Net(forward, fc=nn.Linear(2, 3), attention=nn.MultiheadAttention(2, 1, batch_first=True))


@pytest.mark.parametrize(
    ("make", "order", "head"),
    [
        (head_first, "encoder classifier", "classifier"),
        (projector_after, "body projector fc", "fc"),
        (pooled_convolution, "first unused last", "last"),
        (temperature_and_prior, "body fc temperature prior norm", "fc"),
        (cosine, "body fc", "fc"),
        (prototypes, "body centres", "centres"),
        (written_out, "body fc scale", "fc"),
        (distances, "body centres", "centres"),
        (examples_last, "body w", "w"),
        (adapters, "body fc", "fc"),
        (written_into_place, "body fc", "fc"),
        (depends_on_data, "other fc body", "fc"),
        (compiled, "body fc", "fc"),
        (without_gradient, "body fc", "fc"),
        (one_layer_twice, "same middle fc", "fc"),
        (recurrent, "lstm fc", "fc"),
        (attention, "attention attention.out_proj fc", "fc"),
    ],
)
def test_the_order_is_that_of_use_and_the_head_gives_the_logits(
    make: Callable[[], nn.Module], order: str, head: str
) -> None:
    layers = Layers.of(make(), IMAGES if make is pooled_convolution else INPUTS)
    assert " ".join(layers.names) == order
    assert layers.order == "use"
    assert layers.group("head").layers == (head,)
    assert set(layers.group("body")) == set(layers.names) - {head}


def two_heads() -> nn.Module:
    return Net(lambda net, x: net.left(x) + net.right(x), right=nn.Linear(6, 3), left=nn.Linear(6, 3))


def a_head_for_each_class() -> nn.Module:
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
    return Net(
        lambda net, x: torch.cat([head(net.body(x)) for head in net.heads], 1), heads=heads, body=nn.Linear(6, 4)
    )


def several_centres_for_a_class() -> nn.Module:
    return Net(
        lambda net, x: net.fc(net.body(x)).unflatten(1, (3, 2)).amax(2), fc=nn.Linear(4, 6), body=nn.Linear(6, 4)
    )


def no_weight() -> nn.Module:
    return Net(lambda net, x: x[:, :3] * net.scale, scale=nn.Parameter(torch.ones(())))


@pytest.mark.parametrize(
    ("make", "problem", "named", "body"),
    [
        (two_heads, "the logits come from right and left", "left", "right"),
        (a_head_for_each_class, "the logits come from heads.0 and heads.1 and heads.2", "heads.*", "body"),
        (several_centres_for_a_class, "the logits come from fc, which does not give one output for each", "fc", "body"),
        (no_weight, "the logits come from no product with a layer's weight", "scale", ""),
    ],
)
def test_a_head_that_is_not_to_be_found_is_asked_for(
    make: Callable[[], nn.Module], problem: str, named: str, body: str
) -> None:
    for expression in ("head", "all - body"):
        with pytest.raises(
            ValueError, match=rf"is not known: {problem}; give \[model\] head = '<layer>'; layers are: "
        ):
            Layers.of(make(), INPUTS).group(expression)
    assert " ".join(describe_(make(), INPUTS, head=named).group("body")) == body


def test_a_named_head_must_have_an_output_for_each_class() -> None:
    with pytest.raises(ValueError, match="head: encoder does not give the model's 3 outputs; name the layer that does"):
        describe_(head_first(), INPUTS, head="encoder")


def test_without_inputs_or_with_inputs_that_fail_the_order_is_that_of_registration() -> None:
    for inputs in (None, INPUTS[:, :2]):
        layers = Layers.of(head_first(), inputs)
        assert (layers.names, layers.order) == (("classifier", "encoder"), "registration")
        assert layers.group("head").layers == ("encoder",)


def test_looking_at_a_model_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    Layers.of(model, INPUTS)
    assert model.training
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
