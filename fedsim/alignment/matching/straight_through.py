"""A search with gradients for the permutation under which the mean of two models has the lowest loss."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.symmetries.permutations import Permutation, Spec, permute
from fedsim.models.copies import copy_of
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
        statistics of the batch.
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
        If there is no example, epoch or batch, an entry does not match the architecture, or the descent diverges.

    Notes
    -----
    The straight-through estimator of section 3.3 trains latent parameters, initially the reference's. In each step they
    are projected to the closest permutation of the model, and take the gradient of the mean's loss with respect to the
    permuted model.

    References
    ----------
    Ainsworth et al. 2023, Git Re-Basin: merging models modulo permutation symmetries, arXiv 2209.04836.
    """
    for name, number in (("epochs", epochs), ("batch_size", batch_size), ("examples", len(inputs))):
        if number < 1:
            raise ValueError(f"{name} = {number} must be at least 1; match_weights needs no training")
    reference, params = fit(model, reference, "the reference"), fit(model, params, "the other model")
    middle = _Middle(model, spec, reference, params, criterion)
    permutation = match_weights(spec, reference, params, rng=rng).permutation
    best, lowest = permutation, middle.loss(permutation, inputs, targets)
    latent = {key: reference[key].detach().clone() for key, _ in model.named_parameters()}
    velocity = {key: torch.zeros_like(value) for key, value in latent.items()}
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(inputs))).to(inputs.device)
        for batch in cut_batches(model, len(inputs), batch_size):
            rows = order[batch]
            for key, gradient in middle.gradient(permutation, inputs[rows], targets[rows]).items():
                velocity[key].mul_(momentum).add_(gradient)
                latent[key].sub_(velocity[key], alpha=lr)
            permutation = match_weights(spec, latent, params, rng=rng, start=permutation).permutation
        loss = middle.loss(permutation, inputs, targets)
        if loss < lowest:
            best, lowest = permutation, loss
    return best


class _Middle:
    """The mean of a reference and a permuted model."""

    def __init__(self, model: nn.Module, spec: Spec, reference: Params, params: Params, criterion: Criterion) -> None:
        self._net = copy_of(model).eval()
        for module in self._net.modules():
            if isinstance(module, StatisticsNorm):
                # The mean of two models' statistics is not that of their mean's activations.
                module.train()
                module.track_running_stats = False
        self._trained = [key for key, _ in model.named_parameters()]
        self._spec, self._reference, self._params, self._criterion = spec, reference, params, criterion

    def loss(self, permutation: Permutation, inputs: Tensor, targets: Tensor) -> float:
        """Return the mean loss over all examples."""
        total, mean = 0.0, self._of(permutation)
        with torch.no_grad():
            for batch in cut_batches(self._net, len(inputs), EVALUATION_BATCH):
                total += float(self._losses(mean, inputs[batch], targets[batch]).double().sum())
        return total / len(inputs)

    def gradient(self, permutation: Permutation, inputs: Tensor, targets: Tensor) -> Params:
        """Return the gradient of the batch's mean loss with respect to the permuted model."""
        mean = self._of(permutation)
        trained = [mean[key].requires_grad_() for key in self._trained]
        loss = self._losses(mean, inputs, targets).mean()
        gradients = torch.autograd.grad(loss, trained, materialize_grads=True)
        return {key: each / 2 for key, each in dense(dict(zip(self._trained, gradients, strict=True))).items()}

    @torch.no_grad()
    def _of(self, permutation: Permutation) -> Params:
        return lerp(self._reference, permute(self._params, self._spec, permutation), 0.5)

    def _losses(self, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs: Any = functional_call(self._net, params, (inputs,))
        return self._criterion(outputs, targets)
