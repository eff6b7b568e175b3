"""Models that are fitted, averaged and traced once, and then measured as often as wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.analysis.arguments import (
    check_examples,
    check_is_number,
    check_model,
    check_states,
    check_weights,
)
from fedsim.analysis.features.features import Features, Walks
from fedsim.analysis.mixing.average import average_of
from fedsim.analysis.mixing.mixed_models import MAX_MEMORY, MixedModels
from fedsim.analysis.mixing.mixes import Against, Source, ends_of, is_average
from fedsim.analysis.mixing.names import Normalisation
from fedsim.analysis.mixing.traced import kind_of
from fedsim.models.asymmetry import fixed_entries, merge_fixed_, plain_weights
from fedsim.models.copies import copy_of
from fedsim.models.layers import Layers
from fedsim.models.params import Params, check_number, fit_all
from fedsim.models.purity import writes_to_inputs


@dataclass(frozen=True, eq=False)
class Models:
    """Models of one architecture, prepared once for any number of measurements.

    They are checked when they are first measured, averaged when the average is first needed, and traced with the first
    inputs of each shape.

    Parameters
    ----------
    model
        A module of the states' architecture; it is not changed.
    states
        State dicts of at least one model. Those of another floating-point type are converted to the model's, except
        where most digits would be lost: give ``model.float()`` for states of float32.
    weights
        One positive number per state, for the average; by default all alike, as in the paper.
    normalisation
        How to treat the running statistics of a mixed layer: ``interpolate`` mixes them with it (the paper), ``base``
        keeps those of the base, ``recompute`` takes those of the mixed model on ``calibration``.
    calibration
        Inputs for ``recompute``, shape [n, ...].
    threads
        Number of threads; the numbers do not depend on it.
    max_memory
        Bytes of results that are kept; at least those of a few examples are.
    seed
        Seed of all that is drawn: the order of ``cumulative-random``, random directions, noise, resampled examples.

    Raises
    ------
    TypeError
        If the model is not a module, or the states are not state dicts.
    ValueError
        If the weights do not fit the states, there are no threads or too few inputs for calibration, or
        ``normalisation`` is unknown.
    """

    model: nn.Module
    states: Sequence[Params]
    weights: Sequence[float] | None = None
    normalisation: Normalisation = "interpolate"
    calibration: Tensor | None = None
    threads: int = 1
    max_memory: int = MAX_MEMORY
    seed: int = 0

    def __post_init__(self) -> None:
        check_model(self.model)
        check_states(self.states)
        if self.weights is not None:
            check_weights(self.weights, len(self.states))
        check_is_number("threads", self.threads)
        if self.threads < 1:
            raise ValueError(f"threads = {self.threads} must be at least 1")
        if self.calibration is not None:
            check_examples(self.calibration, self.calibration, "calibration")
            if len(self.calibration) < 2:
                raise ValueError(f"calibration has {len(self.calibration)} inputs; statistics need at least 2")
        if self.normalisation not in get_args(Normalisation):
            raise ValueError(
                f"normalisation = {self.normalisation!r} must be one of {', '.join(get_args(Normalisation))}"
            )

    def __len__(self) -> int:
        return len(self.states)

    def check_keeps_inputs(self, inputs: Tensor) -> None:
        """Check that the model does not write to its inputs, which later passes and the caller use again.

        Raises
        ------
        ValueError
            If it writes to them.
        """
        kind = kind_of(inputs)
        if len(inputs) and kind not in self._kinds_kept:
            if writes_to_inputs(self.model, inputs[:2]):
                raise ValueError(
                    f"{type(self.model).__name__} changes its inputs in place, and would change your data; set "
                    "inplace=False in its first layer, or let its forward begin with a copy of its inputs"
                )
            self._kinds_kept.add(kind)

    @cached_property
    def _kinds_kept(self) -> set[tuple[object, ...]]:
        """Kinds of inputs to which the model does not write."""
        return set()

    @cached_property
    def layers(self) -> Layers:
        """The layers of the model."""
        return Layers.of(self.model)

    @cached_property
    def fitted(self) -> list[Params]:
        """The states, checked, with each tensor once.

        Raises
        ------
        ValueError
            If there is no state, or one does not fit the model.
        """
        return fit_all(self.model, self.states)

    def at_least(self, number: int) -> list[Params]:
        """Return the states, checked.

        Raises
        ------
        ValueError
            If there are fewer than ``number``, or one does not fit the model.
        """
        check_number(self.states, number)
        return self.fitted

    @cached_property
    def average(self) -> Params:
        """The weighted average of the states, whose integer entries are those of the first.

        Raises
        ------
        ValueError
            If there is no state, one does not fit the model, or the weights do not fit the states.
        """
        return average_of(self.fitted, self.weights)

    def compared(self, against: Against = "average") -> list[Params]:
        """Return the states and, last, their average.

        Raises
        ------
        ValueError
            If there are too few states to compare, one does not fit the model, or the weights do not fit the states.
        """
        averaged = against == "average" or (against != "pairs" and all(map(is_average, ends_of(against, len(self)))))
        return [*self.at_least(1 if averaged else 2), self.average]

    @cached_property
    def plain(self) -> "Models":
        """The same models with the weights that layers compute with, where entries of an asymmetric one are fixed.

        Raises
        ------
        ValueError
            If there is no state, or one does not fit the model.
        """
        if not fixed_entries(self.model):
            return self
        model = copy_of(self.model, shares_frozen=False)
        merge_fixed_(model)
        return replace(self, model=model, states=[plain_weights(self.model, state) for state in self.fitted])

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """Share of each state in the average."""
        weights = np.ones(len(self)) if self.weights is None else np.asarray(self.weights, dtype=np.float64)
        return weights / weights.sum()

    @cached_property
    def mixed(self) -> MixedModels:
        """Mixes of the states and, last, their average.

        Raises
        ------
        ValueError
            If a state does not fit the model, or ``recompute`` has no ``calibration``.
        """
        return MixedModels(
            self.model,
            self.compared(),
            normalisation=self.normalisation,
            calibration=self.calibration,
            threads=self.threads,
            max_memory=self.max_memory,
        )

    @cached_property
    def interpolated(self) -> MixedModels:
        """The same, with running statistics interpolated whatever ``normalisation`` says."""
        if self.normalisation == "interpolate":
            return self.mixed
        return MixedModels(self.model, self.compared(), threads=self.threads, max_memory=self.max_memory)

    @cached_property
    def _walks(self) -> Walks:
        return Walks(self.interpolated.tracer)

    def features(self, inputs: Tensor, sources: Sequence[Source]) -> Features:
        """Return what the layers of states, -1 for their average, or of mixes of two give for inputs.

        Raises
        ------
        ValueError
            If a state does not fit the model, or there are no inputs.
        """
        return Features(self._walks, self.compared(), inputs, sources, self.threads)
