"""Models whose units have been aligned, for measuring them after matching."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import numpy as np
import pandas as pd
from torch import Tensor, nn

from fedsim.alignment.matching.activation_matching import match_activations
from fedsim.alignment.matching.expert_matching import ExpertCost, experts_of, match_experts
from fedsim.alignment.matching.implicit_sinkhorn import match_sinkhorn
from fedsim.alignment.merging.c2m3 import merge_c2m3
from fedsim.alignment.merging.merged import Merged
from fedsim.alignment.merging.merging import merge_many
from fedsim.alignment.symmetries.normal_form import normal_form
from fedsim.alignment.symmetries.permutations import Permutation, Spec, identity, moved, permute
from fedsim.alignment.symmetries.rotation_spec import rotation_spec
from fedsim.alignment.symmetries.spec import Derivation, derive_some
from fedsim.alignment.symmetries.transformers import is_known
from fedsim.models.params import Params, fit_all
from fedsim.training.evaluation import Criterion, cross_entropies

# Two rows determine the shapes of what a model computes.
TRACED = 2
MERGES: dict[str, Callable[..., Merged]] = {"c2m3": merge_c2m3}
Symmetries = Literal["permutations", "head-rotations", "rotations", "invertible"]
# The symmetries that ways of matching by weights use.
SYMMETRIES: dict[str, Symmetries] = {
    "weights": "permutations",
    "c2m3": "permutations",
    "head-rotations": "head-rotations",
    "rotations": "rotations",
    "invertible": "invertible",
}
OF_EXPERTS = ("gate", "gram", "units")
WAYS = (*SYMMETRIES, "activations", *OF_EXPERTS, "sinkhorn")
# What works where a model cannot be matched by permutations or not at all.
BY_NAMES = "match by symmetries (of barriers: matching) = 'head-rotations', 'rotations' or 'invertible'"
NO_MATCHING = "to leave units in place, set matching = 'none' (of matched_average or barriers)"


@dataclass(frozen=True)
class MatchedModels:
    """Models after matching.

    Parameters
    ----------
    states
        Aligned states; each computes the same function as before. With ``rotations`` of the residual stream, norms have
        scales of 1, which the layers after them have taken, and with ``invertible`` the factors of heads are balanced.
    permutations
        One permutation per model, which brought its units to their places.
    """

    states: list[Params]
    permutations: list[Permutation]

    def table(self) -> pd.DataFrame:
        """Return a row per model and order: ``base, order, units`` and ``moved``, the share of the units that moved.

        ``moved`` is 0 for each order of the first model. For rotations, which have separate rows, it is the mean of
        ``1 - trace(R) / d`` over their matrices R.
        """
        rows = [
            {"base": base, "order": order, "units": permutation[order].shape[:2].numel(), "moved": share}
            for base, permutation in enumerate(self.permutations)
            for order, share in moved(permutation).items()
        ]
        return pd.DataFrame(rows, columns=["base", "order", "units", "moved"])


def check_symmetries(model: nn.Module, by: str, inputs: Tensor) -> None:
    """Check that models can be matched in some way.

    Raises
    ------
    ValueError
        If the symmetries that it uses cannot be derived from what the model computes, an asymmetric one has none, or it
        lacks the experts.
    """
    spec = spec_of(model, SYMMETRIES.get(by, "permutations"), inputs)
    if by in OF_EXPERTS:
        experts_of(spec)


def spec_of(model: nn.Module, symmetries: Symmetries, inputs: Tensor, by: str = "weights") -> Spec:
    """Return the symmetries of a model: ``permutations``, with ``head-rotations``, or with all ``rotations``.

    ``invertible`` adds factors of heads to be balanced to ``rotations``.

    Raises
    ------
    ValueError
        If they cannot be derived from what the model computes, nothing can be rotated, or balanced for ``invertible``,
        or matching ``by`` c2m3 is to find rotations. The message names what works instead.
    """
    if by == "c2m3" and symmetries != "permutations":
        raise ValueError(
            f"matching = 'c2m3' finds permutations alone, and symmetries = {symmetries!r} needs matching = 'weights'"
        )
    if symmetries == "permutations":
        return _derived(model, inputs).spec
    stream, balanced = symmetries != "head-rotations", symmetries == "invertible"
    try:
        return rotation_spec(model, inputs[:TRACED], stream=stream, balanced=balanced)
    except ValueError as error:
        raise ValueError(f"{error}; {NO_MATCHING}") from error


def _derived(model: nn.Module, inputs: Tensor) -> Derivation:
    """Return the permutations of a model; the message of an error names what works instead."""
    try:
        return derive_some(model, inputs[:TRACED])
    except ValueError as error:
        raise ValueError(f"{error}; {BY_NAMES if is_known(model) else NO_MATCHING}") from error


def match_models(
    model: nn.Module,
    states: Sequence[Params],
    by: str,
    inputs: Tensor,
    *,
    targets: Tensor | None = None,
    criterion: Criterion = cross_entropies,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator,
) -> MatchedModels:
    """Align the units of models to those of the first one.

    Parameters
    ----------
    model
        Model with the architecture; it is not changed.
    states
        State dicts of the models.
    by
        Way of matching: ``weights`` matches all to one another by `fedsim.alignment.merging.merging.merge_many`,
        ``c2m3`` by `fedsim.alignment.merging.c2m3.merge_c2m3`, and ``activations`` each to the first by
        `fedsim.alignment.matching.activation_matching.match_activations`. ``head-rotations`` and ``rotations`` are as
        ``weights``, with units that are also rotated: see `fedsim.alignment.symmetries.rotation_spec.rotation_spec`;
        ``invertible`` balances the factors of heads first.
        ``gate``, ``gram`` and ``units`` match only the experts of each to those of the first, by
        `fedsim.alignment.matching.expert_matching.match_experts`. ``sinkhorn`` matches each to the first by
        `fedsim.alignment.matching.implicit_sinkhorn.match_sinkhorn`, to the lowest loss halfway.
    inputs
        Inputs for the activations, as the model takes them, on its device; ``weights`` needs two.
    targets, criterion
        Targets of the inputs and their loss, for ``sinkhorn``.
    weights
        Weights of the models if they are matched to one another (default: equal).
    rng
        Stream for the order in which models and symmetries are visited.

    Raises
    ------
    ValueError
        If the model's symmetries cannot be found, a state does not match it, there is no state, ``by`` is unknown or
        lacks targets, the descent of ``sinkhorn`` diverges, or a norm's scale is 0 where the residual stream is
        rotated.
    """
    if by not in WAYS:
        raise ValueError(f"by = {by!r} must be one of {', '.join(WAYS)}")
    if not states:
        raise ValueError("there are no states; give at least one model to match")
    states = fit_all(model, states)
    if by in SYMMETRIES:
        spec = spec_of(model, SYMMETRIES[by], inputs)
        states = [normal_form(state, spec) for state in states]
        permutations = MERGES.get(by, merge_many)(spec, states, weights=weights, rng=rng).permutations
    else:
        derivation = _derived(model, inputs)
        spec, (first, *others) = derivation.spec, states
        if by == "activations":
            found = [match_activations(derivation, first, state, inputs) for state in others]
        elif by == "sinkhorn":
            if targets is None:
                raise ValueError("by = 'sinkhorn' needs the targets of the inputs; pass targets")
            search = partial(match_sinkhorn, model, spec, first, criterion=criterion, rng=rng)
            found = [search(state, inputs, targets) for state in others]
        else:
            found = [match_experts(spec, first, state, by=cast("ExpertCost", by)) for state in others]
        permutations = [identity(spec), *found]
    matched = [permute(state, spec, each) for state, each in zip(states, permutations, strict=True)]
    return MatchedModels(matched, permutations)
