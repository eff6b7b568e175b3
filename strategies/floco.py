"""The head is a simplex of solutions, of which each client takes its own region."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.models.asymmetry import fixed_entries, free_parts, with_free_part
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Count, Finished, Local, Option, Positive, Sets, Step, Strategy
from strategies.parts import two_parts

ENDPOINTS, REGION = "endpoints", "region"
# Below this, points of the simplex count as equally close, as in the authors' code.
CLOSEST = 1e-4


class Simplex(ClientRule):
    """Trains the endpoints at a random point of the simplex in each step."""

    trained = (ENDPOINTS,)
    endpoints: int
    radius: float

    def draw(self, rng: np.random.Generator, sets: Sets) -> Params:
        if sets[REGION]["whole"]:
            point = rng.dirichlet(np.ones(self.endpoints))
        else:
            step = rng.uniform(-1, 1, self.endpoints)
            step *= rng.uniform(0, self.radius) / np.abs(step).sum()
            point = np.maximum(sets[REGION]["centre"].cpu().numpy() + step, 0)
            point /= point.sum()
        return {"point": torch.from_numpy(point)}

    def loss(self, step: Step) -> Tensor:
        head = head_at(step.drawn["point"], step.sets[ENDPOINTS])
        return step.loss_of(step.logits(dict(step.params) | head))

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(self.personalised(local), sent={ENDPOINTS: local.sets[ENDPOINTS]})

    def personalised(self, local: Local) -> Params:
        return local.params | head_at(local.sets[REGION]["centre"], local.sets[ENDPOINTS])


class Floco(Strategy):
    """Train a simplex of heads on one body, and give each client a region of it: Floco.

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

    client_rule = Simplex
    head: str = Option("head", "Layers that have endpoints; all others are averaged as usual.")
    endpoints: Count = Option(10, "Corners of the simplex, each a head.")
    whole_rounds: Count = Option(10, "Rounds on the whole simplex, before each client gets its own region.")
    radius: Positive = Option(0.1, "Radius of a region, the paper's rho.")

    def prepare(self) -> None:
        self._head, self.group = two_parts(self.layers, "head", self.head)
        self._head_keys = self.layers.keys(self._head, buffers=False)

    def for_client(self, server_round: int, client: int) -> Params:
        head = self.layers.keys(self._head)  # which the client makes from the endpoints
        return {key: value for key, value in super().for_client(server_round, client).items() if key not in head}

    def planned_layers(self, server_round: int, client: int) -> Sequence[str]:
        return [name for name in super().planned_layers(server_round, client) if name not in self._head]

    def sets_for(self, server_round: int, client: int) -> Sets:
        centre = self.memory.get("centre", {}).get(str(client))
        region = {
            "centre": centre_of(self.endpoints) if centre is None else centre,
            "whole": torch.tensor(centre is None),
        }
        return {ENDPOINTS: self._current(), REGION: region}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        size = self.endpoints * sum(self.global_model[key].nbytes for key in self._head_keys)
        return {ENDPOINTS: (size, size), REGION: (0, self.endpoints * torch.float64.itemsize + torch.bool.itemsize)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        before, changes = self._current(), self.memory.pop("change", {})
        if server_round <= self.whole_rounds:
            for update in updates:
                change = [before[key] - update.sets[ENDPOINTS][key] for key in self._head_keys]
                changes[str(update.client)] = torch.cat([value.flatten() for value in change])
        self.memory["endpoint"] = self.average(updates, of=ENDPOINTS)
        if server_round < self.whole_rounds:
            self.memory["change"] = changes
        elif changes:
            clients = sorted(changes, key=int)
            points = _spread(np.stack([changes[k].double().cpu().numpy() for k in clients]), self.endpoints)
            self.memory["centre"] = {k: torch.from_numpy(point) for k, point in zip(clients, points, strict=True)}
        return self.average(updates) | head_at(centre_of(self.endpoints), self.memory["endpoint"])

    def _current(self) -> Params:
        """Return the endpoints, [endpoints, ...], made from the initial head as long as none were averaged."""
        if "endpoint" not in self.memory:
            self.memory["endpoint"] = {key: self._corners(key, self.global_model[key]) for key in self._head_keys}
        return self.memory["endpoint"]

    def _corners(self, key: str, value: Tensor) -> Tensor:
        fixed = fixed_entries(self.model)
        corners, part = [value], free_parts({key: value}, fixed)[key]
        for number in range(1, self.endpoints):
            order = seeds.rng(self.seed, "endpoint", number, key).permutation(part.numel())
            shuffled = part.flatten()[torch.from_numpy(order)].view_as(part)
            corners.append(with_free_part(value, shuffled, fixed.get(key)))
        return torch.stack(corners)


def centre_of(endpoints: int) -> Tensor:
    """Return the centre of the whole simplex, [endpoints]."""
    return torch.full((endpoints,), 1 / endpoints, dtype=torch.float64)


def head_at(point: Tensor, endpoints: Params) -> Params:
    """Return the head at a point of the simplex, whose corners are the endpoints, [endpoints, ...]."""
    return {key: torch.tensordot(point.to(value), value, 1) for key, value in endpoints.items()}


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
