"""The loops of pFedMe's released code, written again without fedsim's training: what its table would measure.

``python -m experiments.published.pfedme_released METHOD HIDDEN LR PROXIMAL SEEDS`` prints one line of CSV per seed: the
pooled test accuracy of the global model (gm), of the users' local models w (pm, which is what the released code calls
personalised, as its list of personalised parameters is the model itself) and of their theta, in the last round and as
the maximum over the evaluated rounds, which its table takes. HIDDEN is 0 for multinomial regression.
"""

import sys
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsim.data.synthetic import synthetic

ROUNDS, STEPS, BATCH, CHOSEN, INNER, DECAY = 600, 20, 20, 10, 5, 0.001
USERS, EVERY = 100, 10  # rounds between evaluations of the users' own models; the global one is evaluated in each


def logits(params: list[Tensor], inputs: Tensor) -> Tensor:
    """Return [users, n, 10] of one model per user, or [n, 10] of one model."""
    for layer in range(0, len(params), 2):
        inputs = inputs @ params[layer] + params[layer + 1]
        inputs = inputs.relu() if layer + 2 < len(params) else inputs
    return inputs


def slopes(params: list[Tensor], batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of each user's mean loss; what pads a batch has weight 0."""
    leaves = [each.detach().requires_grad_() for each in params]
    inputs, targets, weights = batch
    losses = cross_entropy(logits(leaves, inputs).flatten(0, 1), targets.flatten(), reduction="none")
    return torch.autograd.grad((losses * weights.flatten()).sum(), leaves)


class Users:
    """The users' data, of which each trains on one mini-batch after the other, in a fixed order."""

    def __init__(self, seed: int) -> None:
        data, rng = synthetic(alpha=0.5, beta=0.5, release="pfedme"), np.random.default_rng(seed)
        held = [rng.permutation(np.flatnonzero(data.ids["user"] == user)) for user in range(USERS)]
        self.train = [each[: int(0.9 * len(each))] for each in held]
        self.sizes = torch.tensor([float(len(each)) for each in self.train])
        self.next = [0] * USERS
        test = np.concatenate([each[int(0.9 * len(each)) :] for each in held])
        self.inputs, self.targets = data.train.inputs, data.train.targets
        self.tested, self.owner = self.inputs[test], torch.from_numpy(data.ids["user"][test])
        self.truth = self.targets[test]

    def batch(self, users: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return the users' next mini-batches, and the weight of each example in its mean."""
        chosen, weights = np.zeros((len(users), BATCH), dtype=np.int64), torch.zeros(len(users), BATCH)
        for row, user in enumerate(users):
            start = self.next[user] * BATCH
            part = self.train[user][start : start + BATCH]
            chosen[row, : len(part)], weights[row, : len(part)] = part, 1 / len(part)
            self.next[user] = 0 if start + BATCH >= len(self.train[user]) else self.next[user] + 1
        return self.inputs[chosen], self.targets[chosen], weights

    def accuracy(self, params: list[Tensor]) -> float:
        """Return the share of all users' test examples that the model, or each user's own, has right."""
        if params[0].ndim == 2:
            found = logits(params, self.tested)
        else:
            own = [(self.owner == user).nonzero()[:, 0] for user in range(USERS)]
            found = torch.empty(len(self.truth), 10)
            for user, rows in enumerate(own):
                found[rows] = logits([each[user] for each in params], self.tested[rows])
        return float((found.argmax(1) == self.truth).float().mean())


def initial(hidden: int, seed: int) -> list[Tensor]:
    """Return weights and biases as torch's linear layers begin."""
    torch.manual_seed(seed)
    widths = [60, hidden, 10] if hidden else [60, 10]
    layers = [torch.nn.Linear(*pair) for pair in pairwise(widths)]
    return [each.detach().clone() for layer in layers for each in (layer.weight.T, layer.bias[None])]


def copies(params: list[Tensor], n: int) -> list[Tensor]:
    """Return one model for each of n users."""
    return [each.expand(n, *each.shape).clone() for each in params]


def run(method: str, hidden: int, lr: float, proximal: float, seed: int) -> dict[str, list[float]]:
    """Return the accuracies of a run by model."""
    users, rng, model = Users(seed), np.random.default_rng(1000 + seed), initial(hidden, seed)
    found: dict[str, list[float]] = {"gm": [], "pm": [], "theta": []}
    for server_round in range(ROUNDS):
        chosen = np.sort(rng.choice(USERS, CHOSEN, replace=False))
        # All users train in pFedMe's code; the others' models matter only where they are evaluated.
        watched = method == "pfedme" and (server_round + 1) % EVERY == 0
        training = np.arange(USERS) if watched else chosen
        local = copies(model, len(training))
        theta = copies(model, len(training))
        for _ in range(STEPS):
            batch = users.batch(training)
            if method == "fedavg":
                local = [each - lr * slope for each, slope in zip(local, slopes(local, batch), strict=True)]
                continue
            for _ in range(INNER):
                steps = zip(theta, local, slopes(theta, batch), strict=True)
                theta = [t - 0.01 * (slope + proximal * (t - w) + DECAY * t) for t, w, slope in steps]
            local = [w - proximal * lr * (w - t) for w, t in zip(local, theta, strict=True)]
        if watched:
            found["pm"].append(users.accuracy(local))
            found["theta"].append(users.accuracy(theta))
            local = [each[chosen] for each in local]
        share = users.sizes[chosen] / users.sizes[chosen].sum()
        mean = [torch.einsum("u,uij->ij", share, each) for each in local]
        beta = 2.0 if method == "pfedme" else 1.0
        model = [(1 - beta) * old + beta * new for old, new in zip(model, mean, strict=True)]
        found["gm"].append(users.accuracy(model))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, width, step, pull, seeds = sys.argv[1:6]
    print("method,hidden,seed,model,last,maximum,evaluations")
    for number in range(int(seeds)):
        for of, values in run(name, int(width), float(step), float(pull), number).items():
            if values:
                row = f"{values[-1]:.4f},{max(values):.4f},{len(values)}"
                print(f"{name},{width},{number},{of},{row}", flush=True)
