"""The server mixes each layer of each client from all clients' models, by weights that it learns."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from fedsim import seeds
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Count, NonNegative, Option, Strategy

MIXER_LAYERS = 3


class PFedLA(Strategy):
    """Mix each layer of each client from all clients' models, by weights that a hypernetwork learns: pFedLA.

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

    mixer_lr: NonNegative = Option(0.005, "Step size of the hypernetworks' plain SGD; 0 leaves them as drawn.")
    embedding: Count = Option(100, "Size of a client's embedding.")
    hidden: Count = Option(100, "Size of the hypernetwork's three hidden layers.")
    local_layers = 0

    def for_client(self, server_round: int, client: int) -> Params:
        if not self.memory:  # all models are the initial one
            return super().for_client(server_round, client)
        weights = self.weights_of(client)
        stay = self._stay(client, weights)
        return self._mixture(weights, [layer for layer in self.layers.names if layer not in stay])

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        if not self.memory:
            self.clients = max(self.clients, updates[-1].client + 1)
            self.meet_clients()
        learning = [update for update in updates if update.client in self.known]
        mixers = {str(update.client): self._learnt(update) for update in learning}
        # All clients have trained on mixtures of the models from before.
        models = self._models | {str(update.client): update.shared for update in learning}
        self.memory |= {"model": models, "mixer": self.memory.get("mixer", {}) | mixers}
        return self.average(updates)

    def meet_clients(self) -> None:
        """Remember who the clients are whose models are mixed, and that all of these are the initial one."""
        initial = {key: self.global_model[key] for key in self.keys(self.layers.names)}
        self.memory = {"initial": {"0": initial}, "known": torch.tensor(self.clients_that_train, dtype=torch.int64)}

    @property
    def known(self) -> list[int]:
        """The clients whose models are mixed."""
        return self.memory["known"].tolist()

    @property
    def _models(self) -> dict[str, Params]:
        return self.memory.get("model", {})

    @property
    def _initial(self) -> Params:
        return self.memory["initial"]["0"]

    def weights_of(self, client: int) -> Tensor:
        """Return a client's weights, [layers, clients], float64, without a gradient."""
        if client not in self.known:
            count = len(self.known)
            return torch.full((len(self.layers), count), 1 / count, dtype=torch.float64)
        return _weights(self.mixer_of(client), self.known.index(client)).detach()

    def _mixture(self, weights: Tensor, layers: Sequence[str]) -> Params:
        # Clients that have not taken part share the initial model.
        models = [self._models.get(str(client), self._initial) for client in self.known]
        mixed = {}
        for layer, row in zip(self.layers.names, weights.tolist(), strict=True):
            for key in self.keys((layer,)) if layer in layers else ():
                total = torch.zeros_like(self._initial[key], dtype=torch.float64)
                for model, weight in zip(models, row, strict=True):
                    total.add_(model[key], alpha=weight)
                mixed[key] = total.to(self._initial[key].dtype)
        return mixed

    def _learnt(self, update: ClientUpdate) -> Params:
        """Return a client's hypernetwork after a step along the product of its change with the mixture's gradient."""
        mixer = {key: value.requires_grad_() for key, value in self.mixer_of(update.client).items()}
        weights = _weights(mixer, self.known.index(update.client))
        fixed = weights.detach()
        stay = self._stay(update.client, fixed)
        trained = [layer for layer in self.layers.names if layer not in stay]
        mixture = self._mixture(fixed, trained)
        # The mixture is linear in the weights: its gradient by a weight is the model that the weight multiplies.
        along = torch.zeros_like(fixed)
        for row, layer in enumerate(self.layers.names):
            for key in self.layers[layer].parameters if layer in trained else ():
                change = (update.shared[key].double() - mixture[key]).flatten()
                for column, client in enumerate(self.known):
                    # A copy: the bits of a product depend on where in memory its factors begin.
                    model = self._models.get(str(client), self._initial)[key].to(change, copy=True)
                    along[row, column] += float(change @ model.flatten())
        gradients = torch.autograd.grad((weights * along).sum(), list(mixer.values()))
        return {key: (mixer[key] + self.mixer_lr * g).detach() for key, g in zip(mixer, gradients, strict=True)}

    def _stay(self, client: int, weights: Tensor) -> set[str]:
        """Return the layers that the client keeps: those in which its own model has the largest weights."""
        if not self.local_layers or client not in self.known:
            return set()
        order = weights[:, self.known.index(client)].argsort(descending=True, stable=True)[: self.local_layers]
        return {self.layers.names[row] for row in order.tolist()}

    def mixer_of(self, client: int) -> Params:
        """Return a copy of a client's hypernetwork; at first all are alike except for the embedding."""
        if mixer := self.memory.get("mixer", {}).get(str(client)):
            return {key: value.clone() for key, value in mixer.items()}
        rng = seeds.rng(self.seed, "mixer")
        sizes = [self.embedding, *[self.hidden] * MIXER_LAYERS]
        made = {"embedding": seeds.rng(self.seed, "embedding", client).normal(size=self.embedding)}
        for number, (inputs, outputs) in enumerate(pairwise(sizes)):
            bound = inputs**-0.5
            made[f"weight{number}"] = rng.uniform(-bound, bound, (outputs, inputs))
            made[f"bias{number}"] = rng.uniform(-bound, bound, outputs)
        # Positive at first, so that no client's models are left out for ever.
        made["head"] = rng.uniform(0, 1, (len(self.layers), len(self.known), self.hidden))
        made["head_bias"] = np.zeros((len(self.layers), len(self.known)))
        device = next(iter(self._initial.values())).device
        return {key: torch.from_numpy(value).to(device) for key, value in made.items()}


class HeurPFedLA(PFedLA):
    """Mix layers as pFedLA does, but leave those with each client that it takes mostly from itself: HeurpFedLA.

    References
    ----------
    Ma et al. 2022, Layer-wised model aggregation for personalized federated learning, arXiv 2205.03993.

    Notes
    -----
    Clients send all layers, as other clients' mixtures need them; what is saved is on the way down. The weights are
    compared after normalisation, by layer; FL-bench compares the hypernetwork's outputs before it.
    """

    unplanned = "which layers stay with a client"
    local_layers: Count = Option(1, "Layers that do not travel to a client: those with its own largest weights.")

    def prepare(self) -> None:
        if self.local_layers >= len(self.layers):
            raise ValueError(f"local_layers = {self.local_layers} must be less than all {len(self.layers)} layers")

    def kept(self, server_round: int) -> LayerGroup:
        return self.layers.group("all")  # any may be one that does not travel back


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
