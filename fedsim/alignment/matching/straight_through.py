"""A search with gradients for the permutation under which the mean of two models has the lowest loss."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.symmetries.permutations import Permutation, Spec, permute
from fedsim.models.copies import copy_of
from fedsim.models.frozen import frozen_norms
from fedsim.models.norms import StatisticsNorm
from fedsim.models.params import Params, dense, fit, lerp
from fedsim.training.batches import cut_batches
from fedsim.training.evaluation import EVALUATION_BATCH, Criterion, cross_entropies


def match_straight_through(
    model: nn.Module,
    spec: Spec,
    reference: Params,
    params: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    rng: np.random.Generator,
    epochs: int = 10,
    lr: float = 0.01,
    batch_size: int = 500,
    momentum: float = 0.9,
    criterion: Criterion = cross_entropies,
) -> Permutation:
    """Search for the permutation of a model with which its mean with a reference has the lowest loss on examples.

    The search begins with weight matching. Of this permutation and those after each epoch, the one with the lowest loss
    is returned, so the result is never worse than weight matching.

    Parameters
    ----------
    model
        Model with the architecture; it is not changed, and is run in eval mode, with batch normalisation by the
        statistics of the batch, unless they are frozen.
    reference, params
        All entries of two models.
    inputs, targets
        Training examples: inputs as the model takes them, shape [n, ...], and targets, shape [n, ...].
    rng
        Stream for the order of the examples and for weight matching.
    epochs, lr, batch_size, momentum
        Settings of the gradient descent, which matches weights in each step.
    criterion
        Function from the outputs and targets of a batch to one loss per example.

    Raises
    ------
    ValueError
        If there is no example, epoch or batch, an entry does not match the architecture, the spec has rotations, the
        descent diverges, or the loss that it begins at is NaN.

    Notes
    -----
    The straight-through estimator of section 3.3 trains latent parameters, initially the reference's. In each step they
    are projected to the closest permutation of the model, and take the gradient of the mean's loss with respect to the
    permuted model.

    References
    ----------
    Ainsworth et al. 2023, Git Re-Basin: merging models modulo permutation symmetries, arXiv 2209.04836.
    """
    check_descent(epochs=epochs, batch_size=batch_size, examples=len(inputs))
    check_permutations(spec)
    reference, params = fit(model, reference, "the reference"), fit(model, params, "the other model")
    middle = Middle(model, spec, reference, params, criterion)
    first = permutation = match_weights(spec, reference, params, rng=rng).permutation
    latent = {key: reference[key].detach().clone() for key in middle.trained}
    velocity = {key: torch.zeros_like(value) for key, value in latent.items()}

    def step(rows: Tensor) -> None:
        nonlocal permutation
        for key, gradient in middle.gradient(permutation, inputs[rows], targets[rows]).items():
            velocity[key].mul_(momentum).add_(gradient)
            latent[key].sub_(velocity[key], alpha=lr)
        permutation = match_weights(spec, latent, params, rng=rng, start=permutation).permutation

    def score(found: Permutation) -> float:
        return middle.loss(found, inputs, targets)

    return best_of_descent(
        model, inputs, first, step, lambda: permutation, score, rng=rng, epochs=epochs, batch_size=batch_size
    )


def check_descent(**counts: int) -> None:
    """Check that there is something to descend on.

    Raises
    ------
    ValueError
        If a number is less than 1.
    """
    for name, number in counts.items():
        if number < 1:
            raise ValueError(f"{name} = {number} must be at least 1; match_weights needs no training")


def check_permutations(spec: Spec) -> None:
    """Check that a spec has no rotations, which a search for permutations would not find.

    Raises
    ------
    ValueError
        If it has some.
    """
    if spec.has_rotations:
        raise ValueError("the spec has rotations, and this search finds permutations; use learn_rotations instead")


def best_of_descent(
    model: nn.Module,
    inputs: Tensor,
    first: Permutation,
    step: Callable[[Tensor], None],
    current: Callable[[], Permutation],
    score: Callable[[Permutation], float],
    *,
    rng: np.random.Generator,
    epochs: int,
    batch_size: int,
) -> Permutation:
    """Return the permutation with the lowest score, of the first one and the current ones after each epoch.

    Parameters
    ----------
    step
        Takes a step on the examples at some positions.

    Raises
    ------
    ValueError
        If the score of the first one is NaN, which no other would be lower than.
    """
    best, lowest = first, score(first)
    if math.isnan(lowest):
        raise ValueError("the search begins at a loss of NaN; give models and examples whose outputs are finite")
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(inputs))).to(inputs.device)
        for batch in cut_batches(model, len(inputs), batch_size):
            step(order[batch])
        found = current()
        value = score(found)
        if value < lowest:
            best, lowest = found, value
    return best


class Middle:
    """The mean of a reference and a permuted model.

    Attributes
    ----------
    trained
        Keys of the parameters that are not frozen.
    """

    def __init__(self, model: nn.Module, spec: Spec, reference: Params, params: Params, criterion: Criterion) -> None:
        self._net = copy_of(model).eval()
        frozen = frozen_norms(self._net)
        for module in self._net.modules():
            if isinstance(module, StatisticsNorm) and module not in frozen:
                # The mean of two models' statistics is not that of their mean's activations.
                module.train()
                module.track_running_stats = False
        self.trained = [key for key, _ in model.named_parameters() if key in reference]
        self._spec, self._reference, self._params, self._criterion = spec, reference, params, criterion

    def loss(self, permutation: Permutation, inputs: Tensor, targets: Tensor) -> float:
        """Return the mean loss over all examples."""
        total, mean = 0.0, self._of(permutation)
        with torch.no_grad():
            for batch in cut_batches(self._net, len(inputs), EVALUATION_BATCH):
                total += float(self.losses(mean, inputs[batch], targets[batch]).double().sum())
        return total / len(inputs)

    def gradient(self, permutation: Permutation, inputs: Tensor, targets: Tensor) -> Params:
        """Return the gradient of the batch's mean loss with respect to the permuted model."""
        mean = self._of(permutation)
        trained = [mean[key].requires_grad_() for key in self.trained]
        loss = self.losses(mean, inputs, targets).mean()
        gradients = torch.autograd.grad(loss, trained, materialize_grads=True)
        return {key: each / 2 for key, each in dense(dict(zip(self.trained, gradients, strict=True))).items()}

    @torch.no_grad()
    def _of(self, permutation: Permutation) -> Params:
        return lerp(self._reference, permute(self._params, self._spec, permutation), 0.5)

    def losses(self, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example under some parameters."""
        outputs: Any = functional_call(self._net, params, (inputs.clone(),))  # which the model may change in place
        return self._criterion(outputs, targets)
