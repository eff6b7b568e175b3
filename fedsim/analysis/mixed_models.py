"""Evaluation of mixed models, each distinct one once."""

import copy
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor, nn

from fedsim.analysis.mixes import Mix, Normalisation, Part, Recipe, Source, parts_of, recipe_of
from fedsim.evaluation import Criterion, Evaluation, cross_entropies, evaluate
from fedsim.layers import Layers
from fedsim.params import Params, lerp, load_state_


class MixedModels:
    """Models whose parts come from several states.

    Parameters
    ----------
    model
        Gives the architecture; it is not changed, and models are evaluated in eval mode.
    states
        State dicts; sources are indices into them, -1 the last.
    normalisation
        What becomes of running statistics in a layer that is mixed: ``interpolate`` mixes them with it, ``base``
        keeps the base's.
    criterion
        Maps outputs and targets of a batch to one loss per example.
    threads
        That work at a time; the numbers do not depend on it.
    """

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[Params],
        *,
        normalisation: Normalisation = "interpolate",
        criterion: Criterion = cross_entropies,
        threads: int = 1,
    ) -> None:
        self._model = copy.deepcopy(model).eval()
        self._states = states
        self._criterion = criterion
        self._threads = threads
        self._local = threading.local()
        self.parts: tuple[Part, ...] = parts_of(Layers.of(model), normalisation)

    def recipe(self, mix: Mix, t: float | None = None) -> Recipe:
        """Return what a mixed model is made of, at another ``t`` if given; equal models have equal recipes."""
        return recipe_of(mix, self.parts, t)

    def own(self, state: int) -> Recipe:
        """Return the recipe of a state itself."""
        return (state,) * len(self.parts)

    def build(self, recipe: Recipe) -> nn.Module:
        """Return this thread's model with the weights of a recipe."""
        if not hasattr(self._local, "model"):
            self._local.model = copy.deepcopy(self._model)
        # Integer entries are in no layer and do not matter in eval mode.
        params = dict(self._states[0])
        for part, source in zip(self.parts, recipe, strict=True):
            params |= self._entries(part.keys, source)
        load_state_(self._local.model, params)
        return self._local.model

    def evaluate(self, recipes: Iterable[Recipe], inputs: Tensor, targets: Tensor) -> dict[Recipe, Evaluation]:
        """Evaluate each distinct recipe on all examples.

        Parameters
        ----------
        inputs, targets
            Inputs as the model takes them, shape [n, ...], and targets, shape [n, ...], on the model's device.
        """
        distinct = list(dict.fromkeys(recipes))
        with ThreadPoolExecutor(self._threads) as pool:
            results = pool.map(lambda recipe: evaluate(self.build(recipe), inputs, targets, self._criterion), distinct)
            return dict(zip(distinct, results, strict=True))

    def changed_share(self, layers: Iterable[str]) -> float:
        """Return which share of a forward pass must be computed anew when these layers change."""
        return 1.0 if set(layers) else 0.0

    def _entries(self, keys: Sequence[str], source: Source) -> Params:
        if isinstance(source, int):
            return {key: self._states[source][key] for key in keys}
        start, end, t = source
        return lerp(self._entries(keys, start), self._entries(keys, end), t)
