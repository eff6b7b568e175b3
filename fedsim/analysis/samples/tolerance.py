"""Evaluation of mixed models on only as many examples as a tolerance requires."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.mixes import Recipe, Source
from fedsim.analysis.mixing.traced import say_once
from fedsim.analysis.samples.controls import Matrix, best_design, designs, estimated_values
from fedsim.analysis.samples.two_precisions import TwoPrecisions, in_original_order, joined
from fedsim.errors import first_line
from fedsim.seeds import rng
from fedsim.training.evaluation import Evaluation
from fedsim.training.precision import gains_from_bfloat16

# Examples at the first look, and the factor from each look to the next.
FIRST_LOOK = 125
GROWTH = 1.5
# 1.96 for a single look, and a margin for several looks.
DEVIATIONS = 2.2
# A model that costs at most this share of a forward pass is evaluated on all examples, and helps to predict others.
NEARLY_FREE = 0.05
# Number of other models, known on all examples, that help to predict one.
MOST_RELATED = 6
# Share of the squared standard error that a second precision may leave in models known on all examples: they are in
# the references of many others.
SHARE = 0.1


@dataclass(frozen=True)
class Estimates:
    """Evaluations of models, some of them estimated from fewer examples.

    Parameters
    ----------
    evaluations
        One value per example for each model. If a model was not evaluated on all of them, the mean of these values
        estimates that over all examples, and their variance is that of the estimate.
    used, in_float32
        Number of examples that each model was evaluated on, and on how many of these in float32.
    """

    evaluations: dict[Recipe, Evaluation] = field(default_factory=dict)
    used: dict[Recipe, int] = field(default_factory=dict)
    in_float32: dict[Recipe, int] = field(default_factory=dict)

    def add_(
        self, evaluations: Mapping[Recipe, Evaluation], used: int, precisions: TwoPrecisions | None = None
    ) -> None:
        """Add models that were evaluated on this many examples."""
        self.evaluations.update(evaluations)
        self.used.update(dict.fromkeys(evaluations, used))
        self.in_float32.update({each: precisions.used(each) if precisions else used for each in evaluations})


def estimate(
    models: MixedModels, recipes: Iterable[Recipe], data: Data, *, tolerance: float, seed: int = 0
) -> Estimates:
    """Evaluate each distinct recipe until its mean loss over all examples is known to within ``tolerance``.

    Parameters
    ----------
    tolerance
        Tolerance in nats, which at least 95 % of the models keep.
    seed
        Seed of the order in which examples are taken.

    Notes
    -----
    The states themselves, and models that share almost all computation with one, are evaluated on all examples. The
    losses of all others are regressed on these: for clients that are not i.i.d., the difference to the models at the
    ends varies nearly as much as the loss itself, but class by class it can be predicted.

    A model whose outputs for an example depend on its batch, an earlier call or random numbers has no losses of single
    examples: it is evaluated on all of them in their order, with a line in the log.
    """
    distinct = list(dict.fromkeys(recipes))
    if not models.is_same_in_any_batch(data.inputs):
        origin, estimates = models.tracer.origin, Estimates()
        say_once(
            origin,
            f"barriers evaluate each mixed {type(origin).__name__} on all examples, whatever the tolerance: "
            "its outputs for an example depend on the batch, an earlier call or random numbers",
            logging.WARNING,
        )
        estimates.add_(models.evaluate(distinct, data), len(data))
        return estimates
    ends = [models.own(state) for state in sorted({state for recipe in distinct for state in sources_of(recipe)})]
    estimates = Estimates()
    # The shares are those of the operations, so these must be known.
    models.operations(data.inputs)
    free = [recipe for recipe in distinct if _share(models, recipe) <= NEARLY_FREE]
    strata = strata_of(data.targets)
    order = stratified_order(strata, rng(seed, "tolerance"))
    precisions, known = None, None
    if data.precision == "bfloat16" and len(data) > FIRST_LOOK:
        precisions = TwoPrecisions(models, data, order, tolerance / DEVIATIONS, rng(seed, "two precisions"))
        known = _in_bfloat16(precisions, [*ends, *free])
    if precisions is None or known is None:
        precisions, known = None, models.evaluate([*ends, *free], data)
    estimates.add_(precisions.complete(known, SHARE) if precisions else known, len(data), precisions)
    fast = models if precisions is None else precisions.coarse
    left = [recipe for recipe in distinct if recipe not in known]
    seen: dict[Recipe, Evaluation] = {}
    start = 0
    for end in _looks(len(data)):
        if not left:
            break
        taken = torch.from_numpy(order[start:end]).to(data.targets.device)
        new = fast.evaluate(left, data[taken])
        seen = {recipe: joined(seen[recipe], each) if recipe in seen else each for recipe, each in new.items()}
        if precisions:
            precisions.begin_(left)
        estimates.add_(_known_enough(seen, known, strata, order[:end], tolerance, precisions), end, precisions)
        left = [recipe for recipe in left if recipe not in estimates.used]
        start = end
    return estimates


def _in_bfloat16(precisions: TwoPrecisions, recipes: Sequence[Recipe]) -> dict[Recipe, Evaluation] | None:
    """Return the evaluations of models in bfloat16 on all examples; None, with a line in the log, to do without."""
    data, origin = precisions.data, precisions.models.tracer.origin
    if not gains_from_bfloat16(device := data.targets.device):
        text = f"precision = 'bfloat16' of barriers gains nothing: {device} has no instructions for it"
        say_once(origin, f"{text}; all models are evaluated in float32", logging.WARNING)
        return None
    precisions.begin_(recipes)
    try:
        return precisions.coarse.evaluate(recipes, data)
    except Exception as error:  # a model's code may raise anything where types are not those that it was written for
        text = f"barriers evaluate each mixed {type(origin).__name__} in float32, as it does not run in bfloat16"
        say_once(origin, f"{text} ({first_line(error)})", logging.WARNING)
        return None


def sources_of(recipe: Recipe) -> frozenset[int]:
    """Return the states that a model is made of."""
    return frozenset(state for source in recipe for state in _states(source))


def strata_of(targets: Tensor) -> NDArray[np.int64]:
    """Return the class of each example, counted from 0 without gaps; all 0 where targets are not classes."""
    if targets.ndim > 1 or targets.is_floating_point():
        return np.zeros(len(targets), dtype=np.int64)
    return np.unique(targets.cpu().numpy(), return_inverse=True)[1].astype(np.int64)


def stratified_order(strata: NDArray[np.int64], stream: np.random.Generator) -> NDArray[np.int64]:
    """Return the examples in random order, such that each beginning has nearly the classes' shares of the whole."""
    ranks = np.empty(len(strata))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        ranks[members] = (stream.permutation(len(members)) + stream.random(len(members))) / len(members)
    return np.argsort(ranks, kind="stable")


def _states(source: Source) -> tuple[int, ...]:
    return (source,) if isinstance(source, int) else source[:2]


def _share(models: MixedModels, recipe: Recipe) -> float:
    """Return the share of a pass that a model needs beyond that of the state it is closest to."""
    return min(
        models.changed_share(part.layer for part, source in zip(models.parts, recipe, strict=True) if source != state)
        for state in sources_of(recipe)
    )


def _looks(n: int) -> Iterator[int]:
    size = FIRST_LOOK
    while size < n:
        yield size
        size = int(size * GROWTH)
    yield n


def _known_enough(
    seen: Mapping[Recipe, Evaluation],
    known: Mapping[Recipe, Evaluation],
    strata: NDArray[np.int64],
    sample: NDArray[np.int64],
    tolerance: float,
    precisions: TwoPrecisions | None,
) -> dict[Recipe, Evaluation]:
    """Return the evaluations of those recipes of which enough examples were seen."""
    if len(sample) == len(strata):
        complete = {recipe: in_original_order(evaluation, sample) for recipe, evaluation in seen.items()}
        return precisions.complete(complete) if precisions else complete
    enough: dict[Recipe, Evaluation] = {}
    for alike, controls in _alike(list(seen), known):
        enough |= _within(alike, controls, seen, strata, sample, tolerance, precisions)
    return enough


def _alike(
    recipes: Sequence[Recipe], known: Mapping[Recipe, Evaluation]
) -> Iterator[tuple[list[Recipe], tuple[list[Evaluation], list[Evaluation]]]]:
    """Yield recipes made of the same states, with the evaluations of these and of other models that are known.

    Recipes of a state whose losses are not finite are left out: nothing can be predicted from them.
    """
    groups: dict[frozenset[int], list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault(sources_of(recipe), []).append(recipe)
    by_sources: dict[frozenset[int], list[Evaluation]] = {}
    for recipe, evaluation in known.items():
        if evaluation.losses.isfinite().all():
            by_sources.setdefault(sources_of(recipe), []).append(evaluation)
    for states, alike in groups.items():
        if any(frozenset({state}) not in by_sources for state in states):
            continue
        ends = [by_sources[frozenset({state})][0] for state in sorted(states)]
        others = [each[0] for key, each in by_sources.items() if len(key) == 1 and not key <= states]
        mixed = by_sources.get(states, [])
        step = max(1, -(-len(mixed) // MOST_RELATED))
        yield alike, (ends, [*mixed[::step], *others][:MOST_RELATED])


def _within(
    recipes: Sequence[Recipe],
    controls: tuple[list[Evaluation], list[Evaluation]],
    seen: Mapping[Recipe, Evaluation],
    strata: NDArray[np.int64],
    sample: NDArray[np.int64],
    tolerance: float,
    precisions: TwoPrecisions | None,
) -> dict[Recipe, Evaluation]:
    """Return the estimates of those recipes that are known well enough."""
    finite = [recipe for recipe in recipes if seen[recipe].losses.isfinite().all()]
    if not finite:
        return {}
    candidates, chosen, error = _regression(finite, controls, seen, strata, sample, "losses")
    added = precisions.errors({recipe: seen[recipe] for recipe in finite}, error, GROWTH - 1) if precisions else 0.0
    closed = DEVIATIONS * np.hypot(error, added) <= tolerance
    done = [recipe for recipe, enough in zip(finite, closed, strict=True) if enough]
    if not done:
        return {}
    losses = _values(candidates, chosen[closed], error[closed], sample, _stack(done, seen, "losses"))
    errors = torch.full_like(losses, torch.nan)
    if controls[0][0].errors.isfinite().all():
        candidates, chosen, error = _regression(done, controls, seen, strata, sample, "errors")
        errors = _values(candidates, chosen, error, sample, _stack(done, seen, "errors"))
    found = {recipe: Evaluation(losses[k], errors[k]) for k, recipe in enumerate(done)}
    return precisions.corrected(found, seen) if precisions else found


def _regression(
    recipes: Sequence[Recipe],
    controls: tuple[list[Evaluation], list[Evaluation]],
    seen: Mapping[Recipe, Evaluation],
    strata: NDArray[np.int64],
    sample: NDArray[np.int64],
    attribute: str,
) -> tuple[list[Matrix], NDArray[np.int64], Matrix]:
    """Return candidate regressors, which of them each recipe has, and the standard error that it leaves."""
    ends, related = (
        np.stack([getattr(each, attribute).numpy() for each in part], 1) if part else np.empty((len(strata), 0))
        for part in controls
    )
    candidates = list(designs(ends, related, strata, sample))
    unseen = 1.0 if attribute == "errors" else 0.0
    return candidates, *best_design(candidates, sample, _stack(recipes, seen, attribute), unseen)


def _stack(recipes: Sequence[Recipe], seen: Mapping[Recipe, Evaluation], attribute: str) -> Matrix:
    return np.stack([getattr(seen[recipe], attribute).numpy() for recipe in recipes], 1)


def _values(
    candidates: Sequence[Matrix],
    chosen: NDArray[np.int64],
    error: Matrix,
    sample: NDArray[np.int64],
    outcomes: Matrix,
) -> Tensor:
    """Return estimated values, shape [outcomes, n]."""
    values = np.empty((len(chosen), len(candidates[0])))
    for number in np.unique(chosen):
        mine = chosen == number
        values[mine] = estimated_values(candidates[number], sample, outcomes[:, mine], error[mine]).T
    return torch.from_numpy(values)
