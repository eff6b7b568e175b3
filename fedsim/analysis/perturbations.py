"""What models lose on inputs that are perturbed: against them, or at random."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import torch
from torch import Tensor, nn

from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.paired import check_outputs, check_paired
from fedsim.analysis.models import Models
from fedsim.models.copies import loaded
from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.training.evaluation import (
    Criterion,
    examples_at_a_time,
    is_of_batch,
    losses_and_errors,
)


@of_models
def perturbations(
    models: Models, data: Data, *, fgsm: Sequence[float] = (), noise: Sequence[float] = ()
) -> pd.DataFrame:
    """Measure models on inputs that the fast gradient sign method, or Gaussian noise, has moved.

    Parameters
    ----------
    data
        Normalised inputs, of floating point, and targets.
    fgsm
        How far each entry of an input moves, by the sign of the gradient of the model's own loss.
    noise
        Standard deviations of the noise in each entry; its draw is the same for all models and sizes.

    Returns
    -------
    pandas.DataFrame
        One row per state and perturbation: ``base, perturbation`` (``fgsm`` or ``noise``), ``size, n, loss, error``.
        Sizes are in units of the normalised inputs; inputs are not clipped. The error is NaN where the loss
        is not finite.

    Raises
    ------
    ValueError
        If there is no state, one does not fit the model, inputs are no floating-point numbers, there are none or not as
        many targets, or there is no size, or one is negative.

    References
    ----------
    Goodfellow et al. 2015, Explaining and harnessing adversarial examples, arXiv 1412.6572, section 4.
    """
    fitted, inputs, targets, criterion = models.fitted, data.inputs, data.targets, data.criterion
    _check(inputs, {"fgsm": fgsm, "noise": noise})
    check_paired(data)
    size = len(inputs) if is_of_batch(criterion) else examples_at_a_time(inputs.device)
    counts = data.target_counts
    weights = torch.ones(len(inputs), dtype=torch.float64) if counts is None else counts
    kinds = [("fgsm", eps) for eps in fgsm] + [("noise", sigma) for sigma in noise]

    def measure(state: Params) -> Tensor:
        net = loaded(models.model, state)
        for parameter in net.parameters():
            if parameter.is_leaf:  # those of compiled modules are not
                parameter.requires_grad_(False)
        generator = rng(models.seed, "perturbations")
        sums = torch.zeros(len(kinds), 2, dtype=torch.float64)
        parts = zip(inputs.split(size), targets.split(size), weights.split(size), strict=True)
        for batch, expected, weight in parts:
            drawn = torch.from_numpy(generator.standard_normal(batch.shape)).to(batch)
            directions = {"noise": drawn}
            if fgsm:
                directions["fgsm"] = _ascent(net, batch, expected, criterion)
            for number, (kind, far) in enumerate(kinds):
                with torch.inference_mode():
                    outputs = net(batch + far * directions[kind])
                    check_outputs(data, outputs)
                    found = losses_and_errors(outputs, expected, criterion)
                    sums[number] += torch.stack([(values.double().cpu() * weight).sum() for values in found])
        return sums / weights.sum()

    with ThreadPoolExecutor(models.threads) as pool:
        means = torch.stack(list(pool.map(measure, fitted))).tolist()
    rows = [
        {"base": base, "perturbation": kind, "size": far, "n": len(inputs), "loss": loss}
        | {"error": error if math.isfinite(loss) else math.nan}
        for base, of_state in enumerate(means)
        for (kind, far), (loss, error) in zip(kinds, of_state, strict=True)
    ]
    return pd.DataFrame(rows, columns=["base", "perturbation", "size", "n", "loss", "error"])


def _ascent(net: nn.Module, inputs: Tensor, targets: Tensor, criterion: Criterion) -> Tensor:
    """Return the sign of the loss's gradient in the inputs."""
    moving = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = criterion(net(moving), targets).sum()
        return torch.autograd.grad(loss, moving)[0].sign()


def _check(inputs: Tensor, sizes: Mapping[str, Sequence[float]]) -> None:
    if not inputs.is_floating_point():
        raise ValueError(f"inputs are {inputs.dtype}; only floating-point inputs can be perturbed")
    for name, values in sizes.items():
        if isinstance(values, str | float | int):
            raise TypeError(f"{name} = {values!r} must be a list of numbers, such as [0.1]")
    if not any(sizes.values()):
        raise ValueError("fgsm and noise are both empty; give at least one size")
    for name, values in sizes.items():
        if bad := [size for size in values if not 0 <= size < float("inf")]:
            raise ValueError(f"{name} has the size {bad[0]}; each must be at least 0 and finite")
