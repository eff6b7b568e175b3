"""The server mixes each layer of each client from all clients' models, by weights that it learns."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedsim import seeds
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Strategy, draw_unseen

MIXER_LAYERS = 3


class PFedLA(Strategy):
    """Mix each layer of each client from all clients' models, by weights that a hypernetwork learns: pFedLA.

    Parameters
    ----------
    mixer_lr
        Step size of the hypernetworks' plain SGD, one step for each client's update.
    embedding, hidden
        Sizes of a client's embedding and of the hypernetwork's three hidden layers.

    Raises
    ------
    ValueError
        If ``mixer_lr`` is negative, or ``embedding`` or ``hidden`` is not positive.

    References
    ----------
    Ma et al. 2022, Layer-wised model aggregation for personalized federated learning, arXiv 2205.03993.

    Notes
    -----
    The server keeps the last model of each client, the initial one of those that have not taken part, and a
    hypernetwork for each that has. A client's new model is the mixture that it got plus its change, and the
    hypernetwork steps in the direction in which the mixture comes closer to what the client made of it. FL-bench
    adds the change to the client's previous model, and serves one client after the other. A layer here is a
    module's weight and bias together, not a tensor. A layer whose weights are all 0 stays the client's own. A
    client that was not known when the first update came gets the plain mean of all known models, and the others
    nothing of its. The global model is the average of the round's uploads, weighted by examples: it is evaluated,
    and no client takes it.
    """

    def __init__(
        self, model: nn.Module, mixer_lr: float = 0.005, embedding: int = 100, hidden: int = 100, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        if mixer_lr < 0:
            raise ValueError(f"mixer_lr = {mixer_lr} must be at least 0; 0 leaves the weights as they are drawn")
        for name, value in (("embedding", embedding), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        self._lr, self._sizes = mixer_lr, (embedding, hidden)
        self._local_layers = 0
        self._initial: Params = {}
        self._known: list[int] = []
        self._models: dict[int, Params] = {}
        self._mixers: dict[int, Params] = {}

    def for_client(self, server_round: int, client: int) -> Params:
        """Give a client its mixture of all models; nothing as long as all are the initial one."""
        if not self._models:
            return super().for_client(server_round, client)
        weights = self._weights_of(client)
        travels = [layer for layer in self.layers.names if layer not in self._stay(client, weights)]
        return self._mixture(weights, travels)

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Move each client's weights towards what its training made of the mixture, and remember its model."""
        if not self._models:
            self._initial = {key: self.global_model[key] for key in self._keys(self.layers.names)}
            self._known = self._clients_that_train(updates[-1].client)
        known = [update for update in updates if update.client in self._known]
        mixers = {update.client: self._learnt(update) for update in known}
        # All clients have trained on mixtures of the models from before.
        self._models |= {update.client: update.shared for update in known}
        self._mixers |= mixers
        return super().aggregate(server_round, updates)

    def state(self) -> Params:
        """Return all models and hypernetworks."""
        parts = {"initial": {0: self._initial}, "model": self._models, "mixer": self._mixers}
        memory = {
            f"{part}/{client}/{key}": value
            for part, clients in parts.items()
            for client, entries in clients.items()
            for key, value in entries.items()
        }
        return memory | {"known": torch.tensor(self._known, dtype=torch.int64)}

    def load_state(self, state: Params) -> None:
        """Take the memory."""
        parts: dict[str, dict[int, Params]] = {"initial": {}, "model": {}, "mixer": {}}
        for name, value in state.items():
            if name != "known":
                part, client, key = name.split("/", 2)
                parts[part].setdefault(int(client), {})[key] = value
        self._initial, self._models, self._mixers = parts["initial"].get(0, {}), parts["model"], parts["mixer"]
        self._known = state["known"].tolist()

    def _clients_that_train(self, last: int) -> list[int]:
        count = max(self.clients, last + 1)
        unseen = draw_unseen(self.seed, count, self.unseen)
        return [client for client in range(count) if client not in unseen]

    def _model(self, client: int) -> Params:
        return self._models.get(client, self._initial)

    def _weights_of(self, client: int) -> Tensor:
        """Return a client's weights, [layers, clients], float64, without a gradient."""
        if client not in self._known:
            count = len(self._known)
            return torch.full((len(self.layers), count), 1 / count, dtype=torch.float64)
        return _weights(self._mixer(client), self._known.index(client)).detach()

    def _mixture(self, weights: Tensor, layers: Sequence[str]) -> Params:
        mixed = {}
        for layer, row in zip(self.layers.names, weights, strict=True):
            for key in self._keys((layer,)) if layer in layers else ():
                # Clients that have not taken part share the initial model.
                total = torch.zeros_like(self._initial[key], dtype=torch.float64)
                for client, weight in zip(self._known, row.tolist(), strict=True):
                    total.add_(self._model(client)[key].to(total.device), alpha=weight)
                mixed[key] = total.to(self._initial[key].dtype)
        return mixed

    def _learnt(self, update: ClientUpdate) -> Params:
        """Return a client's hypernetwork after a step along the product of its change with the mixture's gradient."""
        mixer = {key: value.requires_grad_() for key, value in self._mixer(update.client).items()}
        weights = _weights(mixer, self._known.index(update.client))
        fixed = weights.detach()
        stay = self._stay(update.client, fixed)
        trained = [layer for layer in self.layers.names if layer not in stay]
        mixture = self._mixture(fixed, trained)
        # The mixture is linear in the weights: its gradient by a weight is the model that the weight multiplies.
        along = torch.zeros_like(fixed)
        for row, layer in enumerate(self.layers.names):
            for key in self.layers[layer].parameters if layer in trained else ():
                change = (update.shared[key].double() - mixture[key].to(update.shared[key].device)).flatten()
                for column, client in enumerate(self._known):
                    # A copy: the bits of a product depend on where in memory its factors begin.
                    model = self._model(client)[key].to(change, copy=True)
                    along[row, column] += float(change @ model.flatten())
        gradients = torch.autograd.grad((weights * along).sum(), list(mixer.values()))
        return {key: (mixer[key] + self._lr * g).detach() for key, g in zip(mixer, gradients, strict=True)}

    def _stay(self, client: int, weights: Tensor) -> set[str]:
        """Return the layers that the client keeps: those in which its own model has the largest weights."""
        if not self._local_layers or client not in self._known:
            return set()
        order = weights[:, self._known.index(client)].argsort(descending=True, stable=True)[: self._local_layers]
        return {self.layers.names[row] for row in order.tolist()}

    def _mixer(self, client: int) -> Params:
        """Return a copy of a client's hypernetwork; at first all are alike but for the embedding."""
        if client in self._mixers:
            return {key: value.clone() for key, value in self._mixers[client].items()}
        embedding, hidden = self._sizes
        rng = seeds.rng(self.seed, "mixer")
        sizes = [embedding, *[hidden] * MIXER_LAYERS]
        mixer = {"embedding": seeds.rng(self.seed, "embedding", client).normal(size=embedding)}
        for number, (inputs, outputs) in enumerate(pairwise(sizes)):
            bound = inputs**-0.5
            mixer[f"weight{number}"] = rng.uniform(-bound, bound, (outputs, inputs))
            mixer[f"bias{number}"] = rng.uniform(-bound, bound, outputs)
        # Positive at first, so that no client's models are left out for ever.
        mixer["head"] = rng.uniform(0, 1, (len(self.layers), len(self._known), hidden))
        mixer["head_bias"] = np.zeros((len(self.layers), len(self._known)))
        return {key: torch.from_numpy(value) for key, value in mixer.items()}


class HeurPFedLA(PFedLA):
    """Mix layers as pFedLA does, but leave those with each client that it takes mostly from itself: HeurpFedLA.

    Parameters
    ----------
    local_layers
        How many layers do not travel to a client: those in which its own model has the largest weights.
    mixer_lr, embedding, hidden
        As in `PFedLA`.

    Raises
    ------
    ValueError
        If ``local_layers`` is not positive or as many as there are layers, or another option is out of range.

    References
    ----------
    Ma et al. 2022, Layer-wised model aggregation for personalized federated learning, arXiv 2205.03993.

    Notes
    -----
    Clients send all layers, as other clients' mixtures need them; what is saved is on the way down. The weights are
    compared after normalisation, by layer; FL-bench compares the hypernetwork's outputs before it.
    """

    def __init__(
        self,
        model: nn.Module,
        local_layers: int = 1,
        mixer_lr: float = 0.005,
        embedding: int = 100,
        hidden: int = 100,
        **settings: Any,
    ) -> None:
        super().__init__(model, mixer_lr, embedding, hidden, **settings)
        if not 1 <= local_layers < len(self.layers):
            raise ValueError(f"local_layers = {local_layers} must be from 1 to {len(self.layers) - 1}; 0 is pfedla")
        self._local_layers = local_layers

    def kept(self, server_round: int) -> LayerGroup:
        """Keep all layers: any may be one that does not travel back."""
        return self.layers.group("all")


def _weights(mixer: Params, own: int) -> Tensor:
    """Return the weights of a hypernetwork, [layers, clients], of which each row sums to 1."""
    hidden = mixer["embedding"]
    for number in range(MIXER_LAYERS):
        hidden = linear(hidden, mixer[f"weight{number}"], mixer[f"bias{number}"]).relu()
    raw = (mixer["head"] @ hidden + mixer["head_bias"]).relu()
    itself = torch.zeros_like(raw)
    itself[:, own] = 1
    raw = torch.where(raw.sum(1, keepdim=True) > 0, raw, itself)
    return raw / raw.sum(1, keepdim=True)
