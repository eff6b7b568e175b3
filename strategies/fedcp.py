"""A policy divides each example's features between a personal and a generic head."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

from fedsim import seeds
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Finished, Local, NonNegative, Option, Sets, Step, Strategy
from fedsim.training.dropout import random_words
from strategies.parts import HeadRule, linear_head, two_parts
from strategies.reference import reference

OWN, GENERIC, POLICY, CONTEXT, RECEIVED = "personal_head", "generic_head", "policy", "context", "received"
BANDWIDTHS = (10, 15, 20, 50)


class GatedHead(nn.Module):
    """The sum of two linear layers, of which each takes its share of the features."""

    context: Tensor

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.own, self.generic = copy.deepcopy(head), copy.deepcopy(head)
        size = head.in_features
        self.policy = nn.Sequential(nn.Linear(size, 2 * size), nn.LayerNorm(2 * size), nn.ReLU()).to(head.weight)
        self.register_buffer("context", head.weight.new_zeros(size))

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return logits of features [..., size]; noise of the policy has the shape [..., 2, size]."""
        scores = self.policy(features * self.context).unflatten(-1, (2, -1))
        shares = (scores if noise is None else scores + noise).softmax(-2)
        logits: Tensor = self.own(features * shares[..., 0, :]) + self.generic(features * shares[..., 1, :])
        return logits


class FedCpRule(HeadRule):
    """Trains the set ``policy`` with the model, whose head is personal; the ``generic_head`` stays as it came."""

    trained = (POLICY,)
    mmd: float

    def prepare(self) -> None:
        super().prepare()
        self._keys = self.layers.keys([self._head])
        if self.model is not None:
            self._gated = GatedHead(self.model.get_submodule(self._head))  # type: ignore[arg-type]

    def start(self, local: Local) -> Local:
        generic = self._of_head(local.params)
        own = local.sets.get(OWN, generic)  # of a client that has not trained yet
        context = normalize(own["weight"].sum(0), dim=0)
        sets = {OWN: own, GENERIC: generic, CONTEXT: {"value": context}, RECEIVED: local.params}
        return replace(local, params=local.params | self._under_keys(own), sets={**local.sets, **sets})

    def draw(self, rng: np.random.Generator, sets: Sets) -> Params:
        return {"stream": torch.tensor(int(rng.integers(2**63 - 1)))}

    def loss(self, step: Step) -> Tensor:
        _, features = step.logits_and_features(step.params, self._head)
        words = random_words(step.drawn["stream"], 0, (*features.shape[:-1], 2, features.shape[-1]))
        uniform = (words.to(features.dtype) + (2**31 + 0.5)) / 2**32
        noise = -(-uniform.clamp(1e-7, 1 - 1e-7).log()).log()
        gated = self._gated_entries(self._of_head(step.params), step.sets)
        # Of sequences, classes are the second dimension of what a loss takes.
        logits = functional_call(self._gated, gated, (features, noise)).movedim(-1, 1)
        received = reference(step, step.sets[RECEIVED], self.parameters)
        before = step.network.logits_and_features(received, step.inputs, self._head)[1].detach()
        return step.loss_of(logits) + self.mmd * _discrepancy(features, before, step.real)

    def finish(self, local: Local, started: Local) -> Finished:
        own, generic = self._of_head(local.params), started.sets[GENERIC]
        middle = self._under_keys({kind: 0.5 * (value + generic[kind]) for kind, value in own.items()})
        return Finished(local.params, local.params | middle, kept={OWN: own}, sent={POLICY: local.sets[POLICY]})

    def network(self, model: nn.Module) -> nn.Module:
        model.set_submodule(self._head, GatedHead(model.get_submodule(self._head)))  # type: ignore[arg-type]
        return model

    def personalised(self, local: Local) -> Params:
        body = {key: value for key, value in local.params.items() if key not in self._keys}
        gated = self._gated_entries(self._of_head(local.params), local.sets)
        return body | {f"{self._head}.{key}": value for key, value in gated.items()}

    def _of_head(self, params: Params) -> Params:
        return {key.removeprefix(f"{self._head}."): params[key] for key in self._keys}

    def _under_keys(self, head: Params) -> Params:
        return {f"{self._head}.{kind}": value for kind, value in head.items()}

    def _gated_entries(self, own: Params, sets: Sets) -> Params:
        parts = {"own": own, "generic": sets[GENERIC], "policy": sets[POLICY]}
        entries = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
        return entries | {"context": sets[CONTEXT]["value"]}


class FedCp(Strategy):
    """Learn which features of an example go through a generic and which through a personal head: FedCP.

    References
    ----------
    Zhang et al. 2023, FedCP: separating feature information for personalized federated learning via conditional
    policy, arXiv 2307.01217.

    Notes
    -----
    A policy, one linear layer with layer norm and ReLU, divides each feature by a softmax with Gumbel noise; it sees
    the features times the context, the normalised sum of the rows of the client's head as the round begins. The loss
    has ``mmd`` times the squared maximum mean discrepancy, with Gaussian kernels, between the features and those of the
    body that came. The generic head is constant while a client trains; the middle of both heads goes up. Differences
    from the authors' code: models are evaluated without noise; a new client's head is the generic one, and the context
    of a first round is not random; each participant gets the current generic head and policy, which only those of the
    round before get there. Barriers are of the model with the client's head alone, without policy.
    """

    client_rule = FedCpRule
    head: str = Option("head", "Linear layer that becomes two heads.")
    mmd: NonNegative = Option(
        1.0, "Weight of the discrepancy, the paper's lambda: PFLlib's; the authors' script has 5."
    )

    def prepare(self) -> None:
        two_parts(self.layers, "head", self.head)
        self._head = linear_head(self.model, self.layers, "head", self.head)

    def sets_for(self, server_round: int, client: int) -> Sets:
        return {POLICY: self.memory[POLICY] if self.memory else self._drawn()}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        weight = self.model.get_parameter(f"{self._head}.weight")
        size = (2 * weight.shape[1] ** 2 + 6 * weight.shape[1]) * weight.itemsize
        return {POLICY: (size, size)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        self.memory[POLICY] = self.average(updates, of=POLICY)
        return self.average(updates)

    def _drawn(self) -> Params:
        """Return the initial policy, the same in each process."""
        weight, rng = self.global_model[f"{self._head}.weight"], seeds.rng(self.seed, POLICY)
        size = weight.shape[1]
        linear = {"0.weight": (2 * size, size), "0.bias": (2 * size,)}
        drawn = {key: torch.from_numpy(rng.uniform(-1, 1, shape) * size**-0.5) for key, shape in linear.items()}
        norm = {"1.weight": torch.ones(2 * size), "1.bias": torch.zeros(2 * size)}
        return {key: value.to(weight) for key, value in (drawn | norm).items()}


def _discrepancy(one: Tensor, other: Tensor, real: Tensor | None) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples of features, over the targets that count."""
    one, other = one.flatten(0, -2), other.flatten(0, -2)
    counted = torch.ones_like(one[:, 0]) if real is None else real.flatten().to(one.dtype)
    pairs = counted[:, None] * counted / counted.sum().clamp(min=1) ** 2

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        apart = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return sum(((-0.5 / width) * apart).exp() for width in BANDWIDTHS)  # type: ignore[return-value]

    return (pairs * (kernel(one, one) + kernel(other, other) - 2 * kernel(one, other))).sum()
