"""The shared model is one from which a single step makes a good model of each client."""

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, CountOrZero, Local, NonNegative, Option, Step, Strategy


class PerFedAvgRule(ClientRule):
    """Descends the loss at where an inner step leads; the step that leads there counts as a constant."""

    inner_lr: float | None
    split: bool
    evaluation_steps: int

    def loss(self, step: Step) -> Tensor:
        inner, outer = _halves(step) if self.split else (step, step)
        begin = {key: step.params[key].detach() for key in self.parameters}

        def inner_loss(values: Params) -> Tensor:
            # A pass may change running statistics, and they count the mini-batch once.
            others = {key: value.clone() for key, value in step.params.items() if key not in values}
            return inner.loss_of(step.logits(others | values))

        slopes, _ = step.gradient(inner_loss, begin)
        lr = step.lr if self.inner_lr is None else self.inner_lr
        moved = {key: step.params[key] - lr * slope.detach() for key, slope in slopes.items()}
        return outer.loss_of(step.logits({**step.params, **moved}))

    def personalised(self, local: Local) -> Params:
        params = local.params
        for _ in range(self.evaluation_steps):
            params = self._adapted(local, params)
        return params

    def _adapted(self, local: Local, params: Params) -> Params:
        """Return the model after a step on a mini-batch of the training examples."""
        drawn = local.rng.permutation(len(local.targets))[: local.settings.batch_size]
        [chosen] = local.batches(drawn)
        slopes, _ = local.loss_gradient(params, self.parameters, chosen)
        lr = local.settings.lr if self.inner_lr is None else self.inner_lr
        return params | {key: params[key] - lr * slope for key, slope in slopes.items()}


class PerFedAvg(Strategy, shared="all"):
    """Train a model that each client adapts by one step on its own data: Per-FedAvg.

    References
    ----------
    Fallah, Mokhtari and Ozdaglar 2020, Personalized federated learning: a meta-learning approach, arXiv 2002.07948,
    algorithm 1 with the first-order gradient.

    Notes
    -----
    Each step goes from w to w - eta grad f_2(w - alpha grad f_1(w)), for the losses on the two halves of its mini-batch
    and eta the step size of ``[local]``: the paper's gradient without the Hessian. Both halves normalise by the
    statistics of the whole mini-batch. PFLlib draws mini-batches of twice the size and trains each client twice per
    round; FL-bench takes one mini-batch after the other. What is evaluated has taken ``evaluation_steps`` more steps on
    mini-batches of the client's training examples, in evaluation mode, and is then discarded.
    """

    client_rule = PerFedAvgRule
    inner_lr: NonNegative | None = Option(
        None,
        "Size of the inner step and of those before evaluation, the paper's alpha; if not given, local.lr, "
        "which a schedule changes only in training.",
    )
    split: bool = Option(True, "Whether the two losses are of different halves of a mini-batch, or both of all of it.")
    evaluation_steps: CountOrZero = Option(1, "Steps that a client takes before its model is evaluated.")


def _halves(step: Step) -> tuple[Step, Step]:
    """Return the step with the first half of the examples that count, rounded up, and with the rest; one is in both."""
    real = torch.ones_like(step.targets, dtype=torch.bool) if step.real is None else step.real
    place = real.flatten(1).any(1).cumsum(0) if real.dim() > 1 else real.cumsum(0)
    first = 2 * place <= place[-1] + 1
    second = ~first | (place[-1] == 1)
    first, second = (half.view(-1, *[1] * (real.dim() - 1)) & real for half in (first, second))
    return replace(step, real=first), replace(step, real=second)
