"""First and second derivatives of a model's mean loss along directions in its weights, at the model itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedsim.analysis.data import Data
from fedsim.models.copies import loaded
from fedsim.models.params import Params, as_real, state_of
from fedsim.training.evaluation import batch_sizes, counts_of, examples_at_a_time, is_of_batch


def derivatives(model: nn.Module, state: Params, data: Data, directions: Sequence[Params]) -> Tensor:
    """Return slope and curvature of the loss along each direction, shape [directions, 2], float64.

    This takes one gradient, of all parameters that some direction moves, and one Hessian-vector product per direction.
    A direction holds displacements as `fedsim.models.params.as_real` gives them.
    """
    net = loaded(model, state)
    entries = state_of(net, keep_vars=True)
    moving = {key: entries[key].requires_grad_() for key in entries if any(key in each for each in directions)}
    found = torch.zeros(len(directions), 2, dtype=torch.float64)
    counts = data.target_counts
    total = len(data) if counts is None else counts.sum()
    size = len(data) if is_of_batch(data.criterion) else examples_at_a_time(data.inputs.device)
    sizes = batch_sizes(len(data), size)
    with _twice_differentiable():
        for inputs, targets in zip(data.inputs.split(sizes), data.targets.split(sizes), strict=True):
            losses = data.criterion(net(inputs), targets)
            own_counts = counts_of(targets, data.criterion)
            loss = (losses if own_counts is None else losses * own_counts).sum() / total
            found += _along(loss, moving, directions)
    return found


def _along(loss: Tensor, entries: Params, directions: Sequence[Params]) -> Tensor:
    """Return slope and curvature of a loss along each direction."""
    gradient, rows = _gradient(loss, entries), []
    for direction in directions:
        slope = _product(gradient, direction)
        bend = _product(_gradient(slope, {key: entries[key] for key in direction}), direction)
        rows.append(torch.stack([slope, bend]).detach().double())
    return torch.stack(rows).cpu()


def _gradient(value: Tensor, entries: Params) -> Params:
    if not value.requires_grad:  # it does not depend on them
        return {key: torch.zeros_like(entry) for key, entry in entries.items()}
    gradients = torch.autograd.grad(value, list(entries.values()), create_graph=True, materialize_grads=True)
    return dict(zip(entries, gradients, strict=True))


def _product(gradient: Params, direction: Params) -> Tensor:
    return torch.stack([(as_real(gradient[key]).double() * step).sum() for key, step in direction.items()]).sum()


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Let torch choose implementations that have second derivatives, and those of recurrent layers that have any."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
