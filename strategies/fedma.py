"""Neurons are matched before they are averaged, one layer after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedsim import seeds
from fedsim.alignment.symmetries.chain import check_chain
from fedsim.models.averaging import weighted_mean
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import (
    ClientRule,
    ClientUpdate,
    CountOrZero,
    Finished,
    Local,
    LocalPlan,
    Option,
    Phase,
    Sets,
    Strategy,
)

PERMUTATION, CLASS_COUNTS = "permutation", "class_counts"


class Reordering(ClientRule):
    """Puts the inputs of a client's layers into the order of the neurons that were matched before them."""

    cross_entropy_only = True

    def start(self, local: Local) -> Local:
        params, order = dict(local.params), None
        for name, keys in ((layer.name, layer.parameters) for layer in self.layers):
            own = {key: local.own[key] for key in keys}
            if order is not None:
                own[keys[0]] = _with_inputs(own[keys[0]], order)
            if all(torch.equal(local.params[key], local.own[key]) for key in keys):  # not matched since
                params |= own
                order = None
            elif name in local.sets.get(PERMUTATION, {}):
                order = local.sets[PERMUTATION][name].long()
            else:
                order = torch.from_numpy(_best(_rows(own, keys), _rows(local.params, keys))).to(params[keys[0]].device)
        return replace(local, params=params, sets={})

    def finish(self, local: Local, started: Local) -> Finished:
        if local.server_round % len(self.layers):  # classes weigh the last layer only
            return Finished(local.params)
        classes = len(local.params[self.layers[self.layers.names[-1]].parameters[0]])
        counts = local.labels.bincount(minlength=classes)
        return Finished(local.params, sent={CLASS_COUNTS: {"counts": counts}})


class FedMa(Strategy):
    """Match the clients' neurons and average them, from the first layer to the last, one layer a round: FedMA.

    References
    ----------
    Wang et al. 2020, Federated learning with matched averaging, arXiv 2002.06440, algorithm 1.

    Notes
    -----
    As many rounds as the model has layers make a pass, and then the next one begins. In the n-th round of a pass
    clients train all layers from the n-th on, those before it being frozen, and send the n-th one alone. The server
    averages matched neurons with equal weights, and each row of the last layer by the clients' counts of that class,
    which they send with it. A client reorders the inputs of its next layer by the permutation that it gets.

    The model's width is fixed, while the paper's grows: all neurons of a client are matched, one to one. Then the terms
    of the paper's cost that hold sigma, sigma_0 and gamma are equal for all assignments, and what is left is the
    largest sum of products with the other clients' matched neurons; so these are no options here. The average is the
    mean, as in the paper, where the authors' code shrinks it towards the prior. A client that was absent when a layer
    was matched finds its own permutation, the one that fits the new layer best. The global model fits together after
    each whole pass only.
    """

    client_rule = Reordering
    iterations: CountOrZero = Option(5, "Times that each client's neurons are matched again, in random order.")

    def prepare(self) -> None:
        check_chain(self.model, self.layers, "fedma")

    def shared(self, server_round: int) -> LayerGroup:
        layer = self.layers.names[(server_round - 1) % len(self.layers)]
        return LayerGroup(layer, (layer,))

    def kept(self, server_round: int) -> LayerGroup:
        return self.layers.group("all")  # its neurons are compared with the new ones

    def local_plan(self, server_round: int) -> LocalPlan:
        matched = (server_round - 1) % len(self.layers)
        return LocalPlan((Phase(trainable=f"last:{len(self.layers) - matched}"),))

    def sets_for(self, server_round: int, client: int) -> Sets:
        # The order of the layer that the client sent last, unless that was matched again without it.
        return {PERMUTATION: self.memory[str(client)]} if str(client) in self.memory else {}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        names = self.layers.names
        # The last round in which the client sent a layer with neurons, which has not been matched again since.
        earlier = range(server_round - 1, max(0, server_round - len(names) - 1), -1)
        sent = [each for each in earlier if each % len(names) and client in self.drawn(each)]
        ordered = self.layers[names[(sent[0] - 1) % len(names)]].parameters[0] if sent else None
        size = len(self.global_model[ordered]) * torch.int32.itemsize if ordered else 0
        if server_round % len(names):
            return {PERMUTATION: (0, size)}
        classes = len(self.global_model[self.layers[names[-1]].parameters[0]])
        return {PERMUTATION: (0, size), CLASS_COUNTS: (classes * torch.int64.itemsize, 0)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        layer = self.layers[self.shared(server_round).layers[0]]
        if layer.name == self.layers.names[-1]:
            return _mean_by_class(updates)  # it has no neurons to match, but classes
        rng = seeds.rng(self.seed, "matching", server_round)
        orders = _matched([_rows(update.shared, layer.parameters) for update in updates], self.iterations, rng)
        self.memory = {client: order for client, order in self.memory.items() if layer.name not in order}
        for update, order in zip(updates, orders, strict=True):
            self.memory[str(update.client)] = {layer.name: torch.from_numpy(order.astype(np.int32))}
        members = [
            {key: value[torch.from_numpy(order)] for key, value in update.shared.items()}
            for update, order in zip(updates, orders, strict=True)
        ]
        return weighted_mean(members, [1.0] * len(members), self.dtype)


def _rows(params: Params, keys: Sequence[str]) -> np.ndarray:
    """Return all weights of each neuron and its bias, [neurons, weights], float64."""
    return torch.cat([params[key].double().reshape(len(params[key]), -1) for key in keys], 1).cpu().numpy()


def _with_inputs(weight: Tensor, order: Tensor) -> Tensor:
    """Return a weight whose inputs come in a new order; each is a neuron, or all positions of a channel."""
    return weight.reshape(len(weight), len(order), -1)[:, order].reshape(weight.shape)


def _best(rows: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Return the order of the rows in which the sum of their products with those of ``onto`` is largest."""
    return linear_sum_assignment(onto @ rows.T, maximize=True)[1]


def _matched(clients: Sequence[np.ndarray], iterations: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the order of each client's neurons in which they match those of all others."""
    orders, total = [np.arange(len(clients[0]))], clients[0].copy()
    for rows in clients[1:]:
        orders.append(_best(rows, total))
        total += rows[orders[-1]]
    if len(clients) == 1:
        return orders
    for _ in range(iterations):
        for client in rng.permutation(len(clients)):
            others = total - clients[client][orders[client]]
            orders[client] = _best(clients[client], others)
            total = others + clients[client][orders[client]]
    return orders


def _mean_by_class(updates: Sequence[ClientUpdate]) -> Params:
    """Return the last layer, each row weighted by the clients' examples of its class; one without examples, equally."""
    counts = torch.stack([update.sets[CLASS_COUNTS]["counts"].double() for update in updates])
    counts = torch.where(counts.sum(0) > 0, counts, 1)
    shares = counts / counts.sum(0)
    return {
        key: torch.einsum("kc,kc...->c...", shares, torch.stack([update.shared[key].double() for update in updates]))
        for key in updates[0].shared
    }
