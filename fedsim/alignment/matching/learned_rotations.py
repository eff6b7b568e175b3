"""A search with gradients for the rotations under which mixes of two models have the lowest loss."""

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.alignment.matching.straight_through import Middle, best_of_descent, check_descent
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.symmetries.permutations import Permutation, Spec, Symmetry, compose, identity, permute
from fedsim.alignment.symmetries.rotations import Rotation, rotation_from, rotation_key
from fedsim.models.params import Params, fit, lerp
from fedsim.training.evaluation import Criterion, cross_entropies

# The mixes that are trained, and the deviation of what rotations start from.
MIXES, NOISE = (0.4, 0.6), 0.01


def learn_rotations(
    model: nn.Module,
    spec: Spec,
    reference: Params,
    params: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    rng: np.random.Generator,
    epochs: int = 5,
    lr: float = 3e-3,
    batch_size: int = 32,
    criterion: Criterion = cross_entropies,
) -> Permutation:
    """Search for the rotations of a model with which its mixes with a reference have the lowest loss on examples.

    The search begins with weight matching, whose orders stay. Of the rotations there and after each epoch, those whose
    mean with the reference has the lowest loss are returned, so the result is never worse than weight matching.

    Parameters
    ----------
    model
        Model with the architecture; it is not changed, and is run in eval mode.
    spec
        Symmetries of `fedsim.alignment.symmetries.rotation_spec.rotation_spec`.
    reference, params
        All entries of two models, whose norms have been absorbed if the residual stream is rotated.
    inputs, targets
        Training examples: inputs as the model takes them, shape [n, ...], and targets, shape [n, ...].
    rng
        Stream for the order of the examples, the mixes and weight matching.
    epochs, lr, batch_size
        Settings of Adam.
    criterion
        Function from the outputs and targets of a batch to one loss per example.

    Raises
    ------
    ValueError
        If there is no example, epoch, batch or rotation, the loss that it begins at is NaN, or as from `match_weights`.

    Notes
    -----
    Each step mixes the models by t from 0.4 to 0.6. The paper projects a free matrix on the orthogonal ones, and learns
    orders too, by a straight-through estimator; here a rotation is the exponential of a skew matrix, so that no step
    leaves its group, which stays that of layer norms and of rotary positions.

    References
    ----------
    Theus et al. 2025, Generalized linear mode connectivity for transformers, arXiv 2506.22712.
    """
    check_descent(epochs=epochs, batch_size=batch_size, examples=len(inputs))
    if not spec.has_rotations:
        raise ValueError("the spec has no rotations to learn; pass one of rotation_spec, or use match_straight_through")
    reference, params = fit(model, reference, "the reference"), fit(model, params, "the other model")
    first = match_weights(spec, reference, params, rng=rng).permutation
    matched = permute(params, spec, first)
    middle = Middle(model, spec, reference, params, criterion)
    latents = [_Latent(symmetry, each, rng) for symmetry in spec.symmetries for each in symmetry.rotations]
    optimizer = torch.optim.Adam([each.skew for each in latents], lr)

    def step(rows: Tensor) -> None:
        optimizer.zero_grad()
        mixed = lerp(reference, permute(matched, spec, _turns(latents)), float(rng.uniform(*MIXES)))
        middle.losses(mixed, inputs[rows], targets[rows]).mean().backward()
        optimizer.step()

    def current() -> Permutation:
        with torch.no_grad():
            return compose(first, identity(spec) | _turns(latents))

    def score(found: Permutation) -> float:
        return middle.loss(found, inputs, targets)

    return best_of_descent(model, inputs, first, step, current, score, rng=rng, epochs=epochs, batch_size=batch_size)


class _Latent:
    """What the matrices of one group are made of, and trained as."""

    def __init__(self, symmetry: Symmetry, rotation: Rotation, rng: np.random.Generator) -> None:
        self.rotation = rotation
        width = next(width for each, _, width in symmetry.parts if each is rotation)
        self.skew = torch.from_numpy(NOISE * rng.standard_normal((symmetry.blocks, width, width))).requires_grad_()


def _turns(latents: list[_Latent]) -> Permutation:
    turns = {}
    for each in latents:
        matrices = rotation_from(each.rotation.kind, each.skew)
        for name, copies in each.rotation.copies.items():
            turns[rotation_key(name)] = matrices.repeat_interleave(copies, 0)
    return turns
