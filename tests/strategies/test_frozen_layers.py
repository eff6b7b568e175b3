"""The law of frozen layers, over the table: they never change, travel, or are kept, and no step knows them."""

from typing import Any

import pytest
import torch
from torch import nn

from fedsim.models.frozen import frozen_of
from fedsim.models.params import Params, flatten
from fedsim.strategy import messages
from strategies import STRATEGIES
from tests.strategies.harness import ADAPTED, Mlp, Play
from tests.strategies.test_laws import OPTIONS, PLAIN, records_of

MOMENTUM = {"momentum": 0.5, "weight_decay": 0.1, "optimizer_state": "keep"}


def frozen_mlp() -> nn.Module:
    """Layers ``fc1`` (only its bias trains), ``bn`` (frozen with its statistics), ``fc2`` and the head ``fc3``."""
    model = Mlp(norm=True)
    model.fc1.weight.requires_grad_(False)
    model.bn.requires_grad_(False)
    return model


FROZEN = {"fc1.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}


def play_of(name: str, **settings: Any) -> Play:
    local = {"epochs": 1, **({} if STRATEGIES[name].client_rule.plain_sgd else MOMENTUM)}
    return Play(name, OPTIONS.get(name, {}), sizes=(5, 8, 4), model=frozen_mlp, local=local, **settings)


@pytest.mark.parametrize("cohort", [1, 3])
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in (*PLAIN, *ADAPTED)])
def test_frozen_tensors_stay_where_and_as_they_are(name: str, cohort: int) -> None:
    play = play_of(name, cohort=cohort)
    model = play.federation.model()
    assert frozen_of(model).keys() == FROZEN
    before = {key: value.clone() for key, value in frozen_of(model).items()}
    seen: list[Params] = []
    for _ in play.rounds():
        for message in (*play.sent.values(), *play.replied.values()):
            seen += [messages.decode(record) for record in records_of(message).values()]
        seen += [part for client in range(3) for part in play.kept(client).values()]
    seen += [play.strategy.global_model, play.strategy.state(), *(play.personalised(client) for client in range(3))]
    keys = {path.rpartition("/")[2] for part in seen for path in flatten(part)}
    assert not keys & FROZEN
    assert any(key.endswith("fc1.bias") for key in keys)
    for key, value in frozen_of(model).items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(play.federation._template.fc1.weight, before["fc1.weight"])
