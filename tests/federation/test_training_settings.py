"""A whole run with every setting of ``[local]`` is a plain loop over `torch.optim.AdamW`."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim.config import Config
from fedsim.federation.federation import federation_of
from fedsim.federation.participants import participants
from fedsim.models.params import state_of
from fedsim.results.folder import RunFolder
from fedsim.seeds import rng

LOCAL = {
    "epochs": 2,
    "batch_size": 8,
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.1,
    "weight_decay_on": "weights",
    "optimizer_state": "keep",
    "schedule": "cosine",
    "warmup": 5,
    "clip_norm": 0.5,
    "label_smoothing": 0.1,
    "lr_scale": {"head": 0.3},
}


@pytest.mark.parametrize("cohort", [1, 3])
def test_clients_that_miss_rounds_keep_their_optimiser_and_are_where_the_run_is(
    cohort: int, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(rounds=4, participation=0.6, local=LOCAL, engine={"workers": 1, "cohort": cohort})
    folder = play(config)
    found = load_file(folder.checkpoints / "round-00004" / "global.safetensors")
    expected = plain_run(config)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
    assert any(not torch.allclose(found[key], value, atol=1e-2) for key, value in federation_of(config).initial.items())


def plain_run(config: Config) -> dict[str, torch.Tensor]:
    federation, rounds = federation_of(config), config.rounds
    state = {key: value.clone() for key, value in federation.initial.items()}
    models = [copy.deepcopy(federation.model()).train() for _ in range(config.clients)]
    optimisers = [optimiser_of(model) for model in models]
    assert len({tuple(participants(config, each)) for each in range(1, rounds + 1)}) > 1
    for server_round in range(1, rounds + 1):
        mean, there = {key: torch.zeros_like(value) for key, value in state.items()}, participants(config, server_round)
        counts = {client: len(federation.data.client(client).train[1]) for client in there}
        for client in there:
            model, optimiser = models[client], optimisers[client]
            model.load_state_dict(state)
            inputs, targets = federation.data.client(client).train
            stream = rng(config.seed, "train", server_round, client)
            batches = [b for _ in range(2) for b in torch.from_numpy(stream.permutation(len(targets))).split(8)]
            for step, chosen in enumerate(batches):
                share = share_of_lr((server_round - 1) * len(batches) + step, rounds * len(batches))
                for group in optimiser.param_groups:
                    group["lr"] = group["scale"] * 0.01 * share
                optimiser.zero_grad()
                cross_entropy(model(inputs[chosen]), targets[chosen], label_smoothing=0.1).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimiser.step()
            for key, value in state_of(model).items():
                mean[key] += value.detach() * counts[client] / sum(counts.values())
        state = mean
    return state


def optimiser_of(model: nn.Module) -> torch.optim.AdamW:
    groups = [
        {"params": [value], "scale": 0.3 if "fc2" in name else 1.0, "weight_decay": 0.0 if "bias" in name else 0.1}
        for name, value in model.named_parameters()
    ]
    return torch.optim.AdamW(groups)


def share_of_lr(position: int, total: int) -> float:
    return (position + 1) / 6 if position < 5 else (1 + math.cos(math.pi * (position - 5) / (total - 5))) / 2
