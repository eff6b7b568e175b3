"""FedAWA against the released code's loss of the weights and its optimisers, on flat vectors."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate
from strategies import FedAwa
from tests.strategies.harness import Mlp, Play, assert_close, descend, mean_of, norm_mlp


def flat(model: Params) -> Tensor:
    return torch.cat([value.flatten() for value in model.values()])


def learned(t: Tensor, models: list[Tensor], before: Tensor, optimizer: str, lr: float, steps: int) -> Tensor:
    """Return the logits of the weights after the steps, by autograd through the norms of the released code."""
    t = t.clone().requires_grad_()
    if optimizer == "sgd":
        stepper: torch.optim.Optimizer = torch.optim.SGD([t], lr=lr, momentum=0.9)
    else:
        stepper = torch.optim.Adam([t], lr=lr, betas=(0.5, 0.999))
    stacked = torch.stack(models)
    moved = stacked - before
    for _ in range(steps):
        p = torch.softmax(t, dim=0)
        far = 1 - cosine_similarity(before[None], stacked, dim=-1)
        apart = torch.norm(moved - p[None] @ moved, dim=1)
        stepper.zero_grad()
        (torch.sum(p * far) + torch.sum(p * apart)).backward()
        stepper.step()
    return t.detach()


@pytest.mark.parametrize(
    ("options", "model"),
    [({}, Mlp), ({"optimizer": "sgd", "steps": 5, "weight_lr": 0.7}, Mlp), ({"steps": 3, "weight_lr": 0.1}, norm_mlp)],
)
def test_rounds_are_those_of_the_released_code(options: dict, model: type) -> None:
    play = Play("fedawa", options, model=model, sizes=(5, 8, 4), rounds=4)
    given = {"optimizer": "adam", "lr": options.get("weight_lr", 0.001), "steps": 1} | options
    given.pop("weight_lr", None)
    expected, names = play.initial, [name for name, _ in play.model.named_parameters()]
    t = torch.tensor(play.sizes, dtype=torch.float64).log()
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        trained = [descend(play.model, expected, play.batches(server_round, client), 0.1) for client in there]
        vectors = [flat({key: model[key] for key in names}) for model in trained]
        t[there] = learned(t[there], vectors, flat({key: expected[key] for key in names}), **given)
        expected = expected | mean_of(trained, torch.softmax(t[there], 0).tolist())
        assert_close(play.strategy.global_model, expected)


def test_without_steps_it_is_fedavg_bit_by_bit() -> None:
    learning, average = (Play(*of, model=norm_mlp) for of in (("fedawa", {"steps": 0}), ("full", {})))
    for server_round in learning.rounds():
        assert_close(learning.strategy.global_model, average.round(server_round), tolerance=0.0)


def test_one_that_disagrees_with_many_loses_weight() -> None:
    strategy = FedAwa(Mlp().double(), steps=20, weight_lr=0.1)
    strategy.set_global_model({key: value.detach() for key, value in Mlp().double().state_dict().items()})
    step = {key: torch.ones_like(value) for key, value in strategy.global_model.items()}
    updates = [
        ClientUpdate(k, {key: strategy.global_model[key] + sign * step[key] for key in step}, 10.0)
        for k, sign in enumerate((1, 1, 1, -1))
    ]
    strategy.aggregate(1, updates)
    t = [float(strategy.memory["learned"][str(client)]) for client in range(4)]
    assert t[0] == pytest.approx(t[1]) == pytest.approx(t[2])
    assert t[3] < t[0] - 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps = -1 must be at least 0"),
        ({"weight_lr": 0.0}, r"weight_lr = 0\.0 must be greater than 0"),
        ({"optimizer": "adamw"}, 'optimizer = "adamw" must be'),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedAwa(Mlp(), **options)
