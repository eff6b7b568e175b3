"""Models whose units have been aligned, for measuring them after matching."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor, nn

from fedsim.alignment.matching.activation_matching import match_activations
from fedsim.alignment.merging.c2m3 import merge_c2m3
from fedsim.alignment.merging.merged import Merged
from fedsim.alignment.merging.merging import merge_many
from fedsim.alignment.symmetries.permutations import Permutation, identity, moved, permute
from fedsim.alignment.symmetries.spec import Derivation, derive
from fedsim.models.params import Params

# Two rows determine the shapes of what a model computes.
TRACED = 2
MERGES: dict[str, Callable[..., Merged]] = {"weights": merge_many, "c2m3": merge_c2m3}
WAYS = (*MERGES, "activations")


@dataclass(frozen=True)
class MatchedModels:
    """Models after matching.

    Parameters
    ----------
    states
        Aligned states; each computes the same function as before.
    permutations
        One permutation per model, which brought its units to their places.
    """

    states: list[Params]
    permutations: list[Permutation]

    def table(self) -> pd.DataFrame:
        """Return a row per model and order: ``base, order, units`` and ``moved``, the share of the units that moved.

        ``moved`` is 0 for each order of the first model.
        """
        rows = [
            {"base": base, "order": order, "units": len(permutation[order]), "moved": share}
            for base, permutation in enumerate(self.permutations)
            for order, share in moved(permutation).items()
        ]
        return pd.DataFrame(rows, columns=["base", "order", "units", "moved"])


def symmetries_of(model: nn.Module, inputs: Tensor) -> Derivation:
    """Return the permutation symmetries of a model.

    Raises
    ------
    ValueError
        If they cannot be derived from what the model computes.
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
    """Align the units of models to those of the first one.

    Parameters
    ----------
    model
        Model with the architecture; it is not changed.
    by
        Way of matching: ``weights`` matches all to one another by `fedsim.alignment.merging.merging.merge_many`,
        ``c2m3`` by `fedsim.alignment.merging.c2m3.merge_c2m3`, and ``activations`` each to the first by
        `fedsim.alignment.matching.activation_matching.match_activations`.
    inputs
        Inputs for the activations, as the model takes them, on its device; ``weights`` needs two.
    weights
        Weights of the models if they are matched to one another (default: equal).
    rng
        Stream for the order in which models and symmetries are visited.

    Raises
    ------
    ValueError
        If the model's permutation symmetries cannot be found, a state does not match it, there is no state, or ``by``
        is unknown.
    """
    if by not in WAYS:
        raise ValueError(f"by = {by!r} must be one of {', '.join(WAYS)}")
    if not states:
        raise ValueError("there are no states; give at least one model to match")
    derivation = symmetries_of(model, inputs)
    spec = derivation.spec
    if by in MERGES:
        permutations = MERGES[by](spec, states, weights=weights, rng=rng).permutations
    else:
        others = [match_activations(derivation, states[0], state, inputs) for state in states[1:]]
        permutations = [identity(spec), *others]
    matched = [permute(state, spec, each) for state, each in zip(states, permutations, strict=True)]
    return MatchedModels(matched, permutations)
