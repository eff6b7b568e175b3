"""A search with gradients through relaxed permutations: Sinkhorn re-basin."""

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.alignment.matching.relaxations import Relaxation, closest, matrices_of, moved_by
from fedsim.alignment.matching.sinkhorn import sinkhorn
from fedsim.alignment.matching.straight_through import Middle, best_of_descent, check_descent, check_permutations
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.symmetries.permutations import Permutation, Spec, Symmetry, permute
from fedsim.models.params import Params, fit, lerp
from fedsim.training.evaluation import Criterion, cross_entropies

Goal = Literal["middle", "random", "l2"]
# Share of the unit in the start that each place takes at first: with more, gradients are small.
SHARE = 0.5


def match_sinkhorn(
    model: nn.Module,
    spec: Spec,
    reference: Params,
    params: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    rng: np.random.Generator,
    goal: Goal = "middle",
    start: Permutation | None = None,
    temperature: float = 1.0,
    epochs: int = 20,
    lr: float = 0.1,
    batch_size: int = 500,
    criterion: Criterion = cross_entropies,
) -> Permutation:
    """Search for the permutation of a model with which it is best connected to a reference, by relaxed permutations.

    Of the start and the permutations closest to the relaxed ones after each epoch, the best one is returned: the one
    with the lowest loss halfway on all examples or, with ``l2``, the one closest to the reference.

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
        Stream for the order of the examples, for coefficients, and for weight matching.
    goal
        What is minimised: the loss halfway between both models (``middle``), at a random coefficient in each step
        (``random``), or the mean squared difference of their parameters (``l2``), which takes as many steps and no
        examples.
    start
        Permutation to start from. Default: that of weight matching.
    temperature
        Temperature of the Sinkhorn operator; only its product with the latent matrices' scale counts, and so the speed.
    epochs, lr, batch_size
        Settings of AdamW, which trains the latent matrices.
    criterion
        Function from the outputs and targets of a batch to one loss per example.

    Raises
    ------
    ValueError
        If there is no example, epoch or batch, the goal is unknown, the temperature is not positive, an entry does not
        match the architecture, the descent diverges, or the loss or distance that it begins at is NaN.

    Notes
    -----
    Blocks of units, such as heads, have a latent matrix for the blocks and one within each pair of them. The paper
    begins without weight matching: pass ``start=identity(spec)``.

    References
    ----------
    Pena et al. 2023, Re-basin via implicit Sinkhorn differentiation, CVPR 2023, arXiv 2212.12042.
    """
    check_descent(epochs=epochs, batch_size=batch_size, examples=len(inputs))
    check_permutations(spec)
    if goal not in get_args(Goal):
        raise ValueError(f"goal = {goal!r} must be one of {', '.join(get_args(Goal))}")
    reference, params = fit(model, reference, "the reference"), fit(model, params, "the other model")
    first = match_weights(spec, reference, params, rng=rng).permutation if start is None else start
    middle = Middle(model, spec, reference, params, criterion)
    latents = [_Latent(symmetry, first, temperature) for symmetry in spec.symmetries]
    optimizer = torch.optim.AdamW([entry for latent in latents for entry in latent.entries], lr=lr)

    def relaxed() -> Relaxation:
        return {name: matrix for latent in latents for name, matrix in latent.matrices().items()}

    def step(rows: Tensor) -> None:
        optimizer.zero_grad()
        moved = move_softly(params, spec, relaxed())
        if goal == "l2":
            loss = squared_distance(reference, moved, middle.trained)
        else:
            mixed = lerp(reference, moved, 0.5 if goal == "middle" else float(rng.random()))
            loss = middle.losses(mixed, inputs[rows], targets[rows]).mean()
        loss.backward()
        optimizer.step()

    def current() -> Permutation:
        with torch.no_grad():
            return closest(spec, relaxed())

    def score(found: Permutation) -> float:
        if goal == "l2":
            return float(squared_distance(reference, permute(params, spec, found), middle.trained))
        return middle.loss(found, inputs, targets)

    return best_of_descent(model, inputs, first, step, current, score, rng=rng, epochs=epochs, batch_size=batch_size)


def move_softly(params: Params, spec: Spec, matrices: Relaxation) -> Params:
    """Return a model whose units are mixed by relaxed permutations; integer entries do not change."""
    return {
        key: moved_by(value, spec.axes[key], matrices, range(value.ndim)) if key in spec.axes else value
        for key, value in params.items()
    }


def squared_distance(reference: Params, params: Params, keys: list[str]) -> Tensor:
    """Return the mean squared difference of two models' parameters, in float64."""
    total = torch.stack([(params[key].double() - reference[key].double()).square().sum() for key in keys]).sum()
    return total / sum(reference[key].numel() for key in keys)


class _Latent:
    """The latent matrices of a symmetry: of its blocks, and of the units within each pair of blocks."""

    def __init__(self, symmetry: Symmetry, start: Permutation, temperature: float) -> None:
        self._symmetry, self._temperature = symmetry, temperature
        blocks, first = symmetry.blocks, next(iter(symmetry.widths))
        # The first unit of a block says where the block is.
        order = start[first][:: symmetry.widths[first]] // symmetry.widths[first]
        self._blocks = self._begun(torch.eye(blocks, dtype=torch.float64)[order.cpu()])
        self._within = {}
        for name, width in symmetry.widths.items():
            if width > 1:
                whole = matrices_of({name: start[name]})[name].view(blocks, width, blocks, width).transpose(1, 2)
                self._within[name] = self._begun(whole)
        self.entries = [self._blocks, *self._within.values()]

    def matrices(self) -> Relaxation:
        """Return the relaxed permutation of each order, shape [units, units]."""
        blocks = sinkhorn(self._blocks, self._temperature)
        found: Relaxation = {}
        for name, width in self._symmetry.widths.items():
            if width == 1:
                found[name] = blocks
            else:
                within = sinkhorn(self._within[name], self._temperature)
                mixed: Tensor = (blocks[:, :, None, None] * within).transpose(1, 2)
                found[name] = mixed.reshape(len(blocks) * width, -1)
        return found

    def _begun(self, onehot: Tensor) -> Tensor:
        """Return latent matrices with which each place takes `SHARE` of one unit, and the same of all others."""
        others = max(1, onehot.shape[-1] - 1)
        return (onehot * self._temperature * math.log(others * SHARE / (1 - SHARE))).requires_grad_()
