"""Models whose units have been put into the same places, so that they can be measured as such."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor, nn

from fedsim.alignment.matching.activation_matching import match_activations
from fedsim.alignment.merging.merging import merge_many
from fedsim.alignment.symmetries.permutations import Permutation, identity, moved, permute
from fedsim.alignment.symmetries.spec import Derivation, derive
from fedsim.models.params import Params

# Two rows tell the shapes of what a model computes.
TRACED = 2
WAYS = ("weights", "activations")


@dataclass(frozen=True)
class MatchedModels:
    """Models after matching.

    Parameters
    ----------
    states
        Each computes what it did before.
    permutations
        What brought its units to their places, one per model.
    """

    states: list[Params]
    permutations: list[Permutation]

    def table(self) -> pd.DataFrame:
        """Return a row per model and order of units: ``base, order, units`` and ``moved``, the share of them that were.

        ``moved`` is 0 for each order of the first model.
        """
        rows = [
            {"base": base, "order": order, "units": len(permutation[order]), "moved": share}
            for base, permutation in enumerate(self.permutations)
            for order, share in moved(permutation).items()
        ]
        return pd.DataFrame(rows, columns=["base", "order", "units", "moved"])


def symmetries_of(model: nn.Module, inputs: Tensor) -> Derivation:
    """Return which units of a model can change places.

    Raises
    ------
    ValueError
        If what the model computes does not say it.
    """
    return derive(model, inputs[:TRACED])


def match_models(
    model: nn.Module,
    states: Sequence[Params],
    by: str,
    inputs: Tensor,
    *,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator,
) -> MatchedModels:
    """Put the units of models into the places that they have in the first of them.

    Parameters
    ----------
    model
        Gives the architecture; it is not changed.
    by
        ``weights``: all are matched to one another by `fedsim.alignment.merging.merging.merge_many`; ``activations``:
        each to the first by `fedsim.alignment.matching.activation_matching.match_activations`.
    inputs
        Inputs as the model takes them, on the model's device, of which activations are taken; ``weights`` needs two.
    weights
        Of the models where they are matched to one another; all alike if not given.
    rng
        Draws the order in which models and symmetries are visited.

    Raises
    ------
    ValueError
        If the model's permutation symmetries cannot be found, a state does not fit it or there is none, or ``by`` is
        unknown.
    """
    if by not in WAYS:
        raise ValueError(f"by = {by!r} must be one of {', '.join(WAYS)}")
    if not states:
        raise ValueError("there are no states; give at least one model to match")
    derivation = symmetries_of(model, inputs)
    spec = derivation.spec
    if by == "weights":
        permutations = merge_many(spec, states, weights=weights, rng=rng).permutations
    else:
        others = [match_activations(derivation, states[0], state, inputs) for state in states[1:]]
        permutations = [identity(spec), *others]
    matched = [permute(state, spec, each) for state, each in zip(states, permutations, strict=True)]
    return MatchedModels(matched, permutations)
