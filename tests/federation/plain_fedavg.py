"""Federated averaging as a plain loop over `torch.optim.SGD`, which the engines are compared with."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.config import Config
from fedsim.federation.federation import federation_of
from fedsim.seeds import rng
from fedsim.training.batches import cut_batches


def plain_fedavg(config: Config, make: Callable[[], nn.Module] | None = None) -> dict[str, Tensor]:
    """Return the state dict of the global model after all rounds, in which every client takes part.

    Parameters of the model are averaged, and the running statistics of its normalisation; clients keep other buffers.

    Parameters
    ----------
    make
        Returns a new model with the initial weights (default: a copy of the run's).
    """
    federation, local = federation_of(config), config.local
    model = federation.model() if make is None else make()
    make = make or partial(copy.deepcopy, model)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    averaged = {name for name, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}
    averaged |= {f"{name}.running_{kind}" for name in norms for kind in ("mean", "var")}
    averaged &= model.state_dict().keys()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    clients = [state] * config.clients
    for server_round in range(1, config.rounds + 1):
        counts = []
        for number, before in enumerate(clients):
            client = make()
            client.load_state_dict(before | {key: state[key] for key in averaged})
            inputs, targets = federation.data.client(number).train
            counts.append(len(targets))
            trained = [value for value in client.parameters() if value.requires_grad]
            optimiser = torch.optim.SGD(trained, local.lr, momentum=local.momentum)
            stream = rng(config.seed, "train", server_round, number)
            client.train()
            for _ in range(local.epochs):
                order = torch.from_numpy(stream.permutation(len(targets)))
                for cut in cut_batches(client, len(targets), local.batch_size):
                    optimiser.zero_grad()
                    cross_entropy(client(inputs[order[cut]].contiguous()), targets[order[cut]]).backward()
                    optimiser.step()
            clients[number] = {key: value.detach().clone() for key, value in client.state_dict().items()}
        for key in averaged:
            wide = torch.promote_types(state[key].dtype, torch.float64)
            members = [client[key].to(wide) * n for client, n in zip(clients, counts, strict=True)]
            state[key] = (sum(members) / sum(counts)).to(state[key].dtype)
    return state
