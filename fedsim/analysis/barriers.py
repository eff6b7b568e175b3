"""Layer-wise barriers: what it costs to replace or mix some layers of a model by those of another.

Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966.
"""

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor, nn

from fedsim.averaging import weighted_mean
from fedsim.evaluation import Criterion, Evaluation, cross_entropies, evaluate
from fedsim.layers import Layers
from fedsim.params import Params, lerp, load_state_

AVERAGE = -1
REFERENCES = ("mean_ends", "swap_ends", "own_base", "chord")

Against = Literal["average", "pairs"]
Groups = str | Mapping[str, str] | Sequence[str | Mapping[str, str]]
Pair = tuple[int, int]
# The source of one layer: a model's index, the average, or (start, end, t) for a mix of two sources.
Source = int | tuple[int, int, float]
# The sources of all layers, in the model's order.
Recipe = tuple[Source, ...]


@dataclass(frozen=True)
class Mix:
    """Model ``base`` whose layers of a group are ``(1 - t) * base + t * other``."""

    group: str
    layers: frozenset[str]
    base: int
    other: int
    t: float

    def recipe(self, names: Sequence[str], t: float | None = None) -> Recipe:
        """Return the source of each layer, at another ``t`` if given; equal models have equal recipes."""
        t = self.t if t is None else t
        mixed: Source
        if t in (0, 1) or self.base == self.other:
            mixed = self.other if t == 1 else self.base
        elif t == 0.5:  # the one t at which the order of the ends does not matter
            mixed = (min(self.base, self.other), max(self.base, self.other), t)
        else:
            mixed = (self.base, self.other, t)
        return tuple(mixed if name in self.layers else self.base for name in names)


def barriers(
    model: nn.Module,
    states: Sequence[Params],
    inputs: Tensor,
    targets: Tensor,
    *,
    groups: Groups = "layers",
    against: Against = "average",
    ts: Sequence[float] | None = None,
    pairs: Sequence[Pair] | None = None,
    weights: Sequence[float] | None = None,
    criterion: Criterion = cross_entropies,
    threads: int = 1,
) -> pd.DataFrame:
    """Measure the loss and error of mixed models, and the barriers against each reference.

    A mixed model is model ``base`` whose layers of ``group`` are ``(1 - t) * base + t * other``. Running
    statistics are mixed with the layer that they belong to. Models are evaluated in eval mode.

    Parameters
    ----------
    model
        A module of the states' architecture; it is not changed.
    states
        State dicts of at least one model.
    inputs, targets
        Inputs as the model takes them, shape [n, ...], and class indices, shape [n], on the model's device.
    groups
        ``layers`` (each layer by itself), ``full`` (all layers together), a dict of named groups in the layer
        language, or a list of these.
    against
        ``average``: ``other`` is the weighted average of all states, written -1, with t = 1; ``pairs``: another
        state, with t = 0, 1/2, 1.
    ts
        Interpolation coefficients in [0, 1] in place of those defaults.
    pairs
        Ordered pairs (base, other); by default all.
    weights
        One positive number per state; by default all alike, as in the paper.
    criterion
        Maps outputs and targets of a batch to one loss per example.
    threads
        Models evaluated at a time; the numbers do not depend on it.

    Returns
    -------
    pandas.DataFrame
        One row per mixed model: ``group, base, other, t, n, loss, error`` with means over the n examples, and for
        ``loss`` and ``error`` the mixed model's mean minus each reference, with its paired standard error ``_se``:

        - ``_mean_ends``: the mean of the models' own, weighted over all states for the average, plain over the two
          for a pair (the paper's definition);
        - ``_swap_ends``: ``(1 - t)`` times the base's own and ``t`` times that of the base with the whole group from
          ``other`` (the path that Theorem 4.1 speaks of), so 0 at t = 0 and t = 1;
        - ``_own_base``: the base's own;
        - ``_chord``: ``(1 - t)`` times the base's own and ``t`` times the other's; NaN against the average.

    Raises
    ------
    ValueError
        If there is no state, an argument is unknown or out of range, or a layer pattern matches nothing.
    """
    if against not in ("average", "pairs"):
        raise ValueError(f"against = {against!r} must be 'average' or 'pairs'")
    names = Layers.of(model).names
    mixes = list(_mixes(model, len(states), groups, against, ts, pairs))
    weights = [1.0] * len(states) if weights is None else weights
    average = weighted_mean(states, weights)
    evaluations = _evaluate_all(
        _Mixer(model, [*states, average | {k: v for k, v in states[0].items() if k not in average}]),
        _needed(mixes, names, len(states)),
        lambda module: evaluate(module, inputs, targets, criterion),
        threads,
    )
    own = [evaluations[(base,) * len(names)] for base in range(len(states))]
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    return pd.DataFrame([_row(mix, names, evaluations, own, shares) for mix in mixes])


def count_evaluations(
    model: nn.Module, states: int, *, groups: Groups, against: Against, pairs: Sequence[Pair] | None = None
) -> int:
    """Return how many models `barriers` would evaluate, each on all examples."""
    names = Layers.of(model).names
    return len(_needed(list(_mixes(model, states, groups, against, None, pairs)), names, states))


def _needed(mixes: Sequence[Mix], names: Sequence[str], states: int) -> list[Recipe]:
    """Return the distinct models that the rows and their references need."""
    own = [(base,) * len(names) for base in range(states)]
    rows = [mix.recipe(names, t) for mix in mixes for t in (mix.t, 1.0)]
    return list(dict.fromkeys([*own, *rows]))


def _mixes(
    model: nn.Module,
    states: int,
    groups: Groups,
    against: Against,
    ts: Sequence[float] | None,
    pairs: Sequence[Pair] | None,
) -> Iterator[Mix]:
    """List the rows of the result."""
    if states < 1:
        raise ValueError("there are no states; barriers need at least one model")
    ts = ((1.0,) if against == "average" else (0.0, 0.5, 1.0)) if ts is None else ts
    if any(not 0 <= t <= 1 for t in ts):
        raise ValueError(f"ts = {list(ts)}: each must be from 0 to 1")
    ends = [(base, AVERAGE) for base in range(states)]
    if against == "pairs":
        ends = list(permutations(range(states), 2)) if pairs is None else list(pairs)
        if bad := [pair for pair in ends if not all(0 <= index < states for index in pair)]:
            raise ValueError(f"pair {bad[0]} names a model that is not there; there are {states}, counted from 0")
    for group, layers in named_groups(Layers.of(model), groups).items():
        for base, other in ends:
            for t in ts:
                yield Mix(group, frozenset(layers), base, other, float(t))


def named_groups(layers: Layers, groups: Groups) -> dict[str, tuple[str, ...]]:
    """Return the layers of each group, by the name that it has in the result.

    Raises
    ------
    ValueError
        If a group is neither ``layers``, ``full`` nor a dict of named expressions, or matches nothing.
    """
    named: dict[str, tuple[str, ...]] = {}
    for item in [groups] if isinstance(groups, str | Mapping) else groups:
        if isinstance(item, Mapping):
            named |= {name: layers.group(expression).layers for name, expression in item.items()}
        elif item == "layers":
            named |= {name: (name,) for name in layers.names}
        elif item == "full":
            named["full"] = layers.names
        else:
            raise ValueError(f"groups has {item!r}; it must be 'layers', 'full' or a dict such as {{'top': 'last:2'}}")
    return named


class _Mixer:
    """Builds the models that recipes describe, one per thread at a time.

    ``states`` ends with the average, so that -1 is its index.
    """

    def __init__(self, model: nn.Module, states: Sequence[Params]) -> None:
        self._model = copy.deepcopy(model).eval()
        self._states = states
        self._layers = Layers.of(model)
        self._local = threading.local()

    def build(self, recipe: Recipe) -> nn.Module:
        if not hasattr(self._local, "model"):
            self._local.model = copy.deepcopy(self._model)
        # Integer entries are in no layer and do not matter in eval mode.
        params = dict(self._states[0])
        for layer, source in zip(self._layers, recipe, strict=True):
            params |= self._layer(layer.keys, source)
        load_state_(self._local.model, params)
        return self._local.model

    def _layer(self, keys: Sequence[str], source: Source) -> Params:
        if isinstance(source, int):
            return {key: self._states[source][key] for key in keys}
        start, end, t = source
        return lerp(self._layer(keys, start), self._layer(keys, end), t)


def _evaluate_all(mixer: _Mixer, recipes: Sequence[Recipe], measure: Any, threads: int) -> dict[Recipe, Evaluation]:
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda recipe: measure(mixer.build(recipe)), recipes)
        return dict(zip(recipes, results, strict=True))


def _row(
    mix: Mix,
    names: Sequence[str],
    evaluations: Mapping[Recipe, Evaluation],
    own: Sequence[Evaluation],
    shares: np.ndarray,
) -> dict[str, Any]:
    """Compute one row; every difference is taken example by example, so that its standard error is paired."""
    mixed, swapped = evaluations[mix.recipe(names)], evaluations[mix.recipe(names, 1.0)]
    n, t = mixed.n, mix.t
    row: dict[str, Any] = {"group": mix.group, "base": mix.base, "other": mix.other, "t": t, "n": n}
    row |= {"loss": mixed.loss, "error": float(mixed.errors.mean())}
    for metric, attribute in (("loss", "losses"), ("error", "errors")):
        value, swap = getattr(mixed, attribute), getattr(swapped, attribute)
        ends = [getattr(evaluation, attribute) for evaluation in own]
        base = ends[mix.base]
        if mix.other == AVERAGE:
            mean_ends = sum(share * end for share, end in zip(shares, ends, strict=True))
            chord = base * np.nan
        else:
            mean_ends = (base + ends[mix.other]) / 2
            chord = (1 - t) * base + t * ends[mix.other]
        references = (mean_ends, (1 - t) * base + t * swap, base, chord)
        for name, reference in zip(REFERENCES, references, strict=True):
            difference = (value - reference).numpy()
            row[f"{metric}_{name}"] = float(difference.mean())
            row[f"{metric}_{name}_se"] = float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return row
