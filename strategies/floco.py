"""The head is a simplex of solutions, of which each client takes its own region."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.models.averaging import weighted_mean
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Sets, Step, Strategy
from strategies.parts import two_parts

ENDPOINTS, REGION = "endpoints", "region"
# Below this, points of the simplex count as equally close, as in the authors' code.
CLOSEST = 1e-4


class Floco(Strategy):
    """Train a simplex of heads on one body, and give each client a region of it: Floco.

    Parameters
    ----------
    head
        The layers that have endpoints; all others are averaged as usual.
    endpoints
        Corners of the simplex, each a head.
    whole_rounds
        Rounds in which all clients train on the whole simplex; then each gets a region of its own.
    radius
        Of a region, the paper's rho.

    Raises
    ------
    ValueError
        If ``head`` or the layers beside it hold no parameter, or ``endpoints``, ``whole_rounds`` or ``radius`` is not
        positive.

    References
    ----------
    Grinwald, Wiesner and Nakajima 2024, Federated learning over connected modes, arXiv 2403.03333.

    Notes
    -----
    As in Flower's baseline by the authors, the regions' centres come from what each client's training changed in the
    endpoints: principal components, projected onto the simplex with the scale that spreads the clients most evenly, by
    Riesz energy. The last change of each client that has taken part by then counts, while the baseline trains all
    clients in that round; a client that has not keeps the whole simplex. Differences: biases have endpoints too; the
    first endpoint begins as the model's own head, each other one with the same values in random order, so that every
    initialiser fits; random points of a region are cut at 0 and divided by their sum, where the baseline's leave the
    simplex; with fewer clients than endpoints the missing components are 0. The global model's head is the centre of
    the simplex, and the personalised model's the client's centre. Floco+ is not here. The baseline's tau is
    ``whole_rounds`` + 1.
    """

    def __init__(
        self,
        model: nn.Module,
        head: str = "head",
        endpoints: int = 10,
        whole_rounds: int = 10,
        radius: float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        for name, value in (("endpoints", endpoints), ("whole_rounds", whole_rounds)):
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        if radius <= 0:
            raise ValueError(f"radius = {radius} must be greater than 0")
        self._head, self._body = two_parts(self.layers, "head", head)
        self._whole_rounds = whole_rounds
        self._rule = Simplex(self.layers.keys(self._head, buffers=False), endpoints, radius)
        self._endpoints: Params = {}
        self._changes: dict[int, Tensor] = {}
        self._centres: dict[int, Tensor] = {}

    def shared(self, server_round: int) -> LayerGroup:
        """Share the body: the head travels as endpoints."""
        return self._body

    def client_rule(self) -> ClientRule:
        """Return the rule that trains random points of the simplex."""
        return self._rule

    def for_client(self, server_round: int, client: int) -> Params:
        """Give a client the body: it makes its head from the endpoints."""
        head = self.layers.keys(self._head)
        return {key: value for key, value in super().for_client(server_round, client).items() if key not in head}

    def sets_for(self, server_round: int, client: int) -> Sets:
        """Send the endpoints, and the client's centre."""
        whole = client not in self._centres
        centre = self._rule.centre if whole else self._centres[client]
        return {ENDPOINTS: self._current(), REGION: {"centre": centre, "whole": torch.tensor(whole)}}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Average bodies and endpoints, and find the regions once the rounds on the whole simplex are over."""
        weights = [update.num_examples for update in updates]
        before = self._current()
        if server_round <= self._whole_rounds:
            for update in updates:
                change = [before[key].cpu() - update.sets[ENDPOINTS][key].cpu() for key in self._rule.head]
                self._changes[update.client] = torch.cat([value.flatten() for value in change])
        self._endpoints = weighted_mean([update.sets[ENDPOINTS] for update in updates], weights, self.precision)
        if server_round >= self._whole_rounds and self._changes:
            clients = sorted(self._changes)
            points = _spread(np.stack([self._changes[k].double().numpy() for k in clients]), self._rule.endpoints)
            self._centres = {client: torch.from_numpy(point) for client, point in zip(clients, points, strict=True)}
            self._changes = {}
        body = weighted_mean([update.shared for update in updates], weights, self.precision)
        return body | self._rule.head_at(self._rule.centre, self._endpoints)

    def state(self) -> Params:
        """Return endpoints, centres, and what is remembered until there are centres."""
        memory = {f"endpoint/{key}": value for key, value in self._endpoints.items()}
        memory |= {f"change/{client}": value for client, value in self._changes.items()}
        return memory | {f"centre/{client}": value for client, value in self._centres.items()}

    def load_state(self, state: Params) -> None:
        """Take the memory."""
        parts: dict[str, Params] = {"endpoint": {}, "change": {}, "centre": {}}
        for name, value in state.items():
            part, _, key = name.partition("/")
            parts[part][key] = value
        self._endpoints = parts["endpoint"]
        self._changes = {int(client): value for client, value in parts["change"].items()}
        self._centres = {int(client): value for client, value in parts["centre"].items()}

    def _current(self) -> Params:
        """Return the endpoints, [endpoints, ...], made from the initial head as long as none were averaged."""
        if not self._endpoints:
            self._endpoints = {key: self._corners(key, self.global_model[key]) for key in self._rule.head}
        return self._endpoints

    def _corners(self, key: str, value: Tensor) -> Tensor:
        corners = [value]
        for number in range(1, self._rule.endpoints):
            order = seeds.rng(self.seed, "endpoint", number, key).permutation(value.numel())
            corners.append(value.flatten()[torch.from_numpy(order)].view_as(value))
        return torch.stack(corners)


def _spread(changes: np.ndarray, endpoints: int) -> np.ndarray:
    """Return a point of the simplex, [clients, endpoints], for each client's change, [clients, entries]."""
    centred = changes - changes.mean(0)
    left, size, right = np.linalg.svd(centred, full_matrices=False)
    # A component has no sign of its own: its largest loading is positive, as in scikit-learn.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    components = np.zeros((len(changes), endpoints))
    count = min(endpoints, len(size))
    components[:, :count] = (left * size * signs)[:, :count]
    best, lowest = np.zeros(0), np.inf
    for scale in np.linspace(1e-4, 1, 1000):
        points = _onto_simplex(components, scale)
        points /= points.sum(1, keepdims=True)
        distances = np.linalg.norm(points[:, None] - points[None, :], axis=2)[np.triu_indices(len(points), 1)]
        energy = (1 / np.maximum(distances, CLOSEST) ** 2).sum()
        if energy < lowest:
            best, lowest = points, energy
    return best


def _onto_simplex(points: np.ndarray, scale: float) -> np.ndarray:
    """Return the nearest points, row by row, with entries of at least 0 that sum to ``scale``."""
    descending = -np.sort(-points, axis=1)
    surplus = descending.cumsum(1) - scale
    positive = (descending * np.arange(1, points.shape[1] + 1) > surplus).sum(1)
    return np.maximum(points - (surplus[np.arange(len(points)), positive - 1] / positive)[:, None], 0)


@dataclass(frozen=True)
class Simplex(ClientRule):
    """Trains the endpoints at a random point of the simplex in each step.

    Parameters
    ----------
    head
        Keys of the head's parameters.
    """

    head: tuple[str, ...]
    endpoints: int
    radius: float
    trained = (ENDPOINTS,)

    @property
    def centre(self) -> Tensor:
        """The centre of the whole simplex, [endpoints]."""
        return torch.full((self.endpoints,), 1 / self.endpoints, dtype=torch.float64)

    def head_at(self, point: Tensor, endpoints: Mapping[str, Tensor]) -> Params:
        """Return the head at a point of the simplex."""
        return {key: torch.tensordot(point.to(endpoints[key]), endpoints[key], 1) for key in self.head}

    def draw(self, rng: np.random.Generator, sets: Sets) -> Params:
        """Draw a point of the whole simplex, or of the client's region."""
        if sets[REGION]["whole"]:
            point = rng.dirichlet(np.ones(self.endpoints))
        else:
            step = rng.uniform(-1, 1, self.endpoints)
            step *= rng.uniform(0, self.radius) / np.abs(step).sum()
            point = np.maximum(sets[REGION]["centre"].cpu().numpy() + step, 0)
            point /= point.sum()
        return {"point": torch.from_numpy(point)}

    def loss(self, step: Step) -> Tensor:
        """Return the cross-entropy of the model with the head at the point that was drawn."""
        head = self.head_at(step.drawn["point"], step.sets[ENDPOINTS])
        return step.cross_entropy(step.logits(dict(step.params) | head))

    def finish(self, local: Local, started: Local) -> Finished:
        """Send the endpoints."""
        return Finished(self.personalised(local), sent={ENDPOINTS: local.sets[ENDPOINTS]})

    def personalised(self, local: Local) -> Params:
        """Return the model with the head at the client's centre."""
        return local.params | self.head_at(local.sets[REGION]["centre"], local.sets[ENDPOINTS])
