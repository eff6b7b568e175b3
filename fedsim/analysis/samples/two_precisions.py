"""Losses in bfloat16, and their mean difference to those in float32 from a few examples."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.mixes import Recipe
from fedsim.analysis.samples.controls import Matrix, estimated_values
from fedsim.training.evaluation import Evaluation

# Examples that each model is evaluated on in float32 at least: enough to know how far the two precisions differ.
FEWEST = 16
# Time of an example in bfloat16 relative to one in float32, on a processor with instructions for it: about that of cnn
# in benchmarks/precisions.py, where resnet18 has 0.73.
COST = 0.6
# Relative rounding of a number in bfloat16, with 8 significant bits: about its root mean square; at most twice as much.
ROUNDING = 2**-9


@dataclass
class TwoPrecisions:
    """Models in bfloat16 and in float32, by double sampling (Cochran 1977, Sampling techniques, 12).

    With losses b in bfloat16 on m examples and f in float32 on the first m' <= m of them, the mean of f is estimated by
    that of b, as without a second precision, plus the mean of f - b over the m'. What this adds to the squared standard
    error, S_d^2 (1 / m' - 1 / n) with the variance S_d^2 of f - b, is small, as the two differ by rounding only. The
    estimate is unbiased for a fixed m'. Where m' follows from the same differences it is so if they are symmetric, and
    in simulations of skewed ones biased by less than the deviation that is allowed.

    S_d is taken to be at least `ROUNDING` times the standard deviation of b: few differences may miss the large losses,
    which rounding changes most. Where it changes few losses by far more than that, as when a gate chooses another
    expert, the first m' may have none of them: what these add to the bias of b then stays, and no standard error shows
    it. Models with a b that is not finite are evaluated in float32 alone.

    Errors of 0 and 1 are left as they are in bfloat16: rounding changes so few predictions that a difference from few
    examples would be much coarser than the bias, which is at most the share of the predictions that change. This share,
    over all models together and with one more than was seen, is added to the standard error.

    Parameters
    ----------
    models
        The models in float32, which have been evaluated before.
    data
        All n examples.
    order
        Positions of the examples in the order in which they are taken, shape [n].
    deviation
        Standard error to which a mean must be known.
    stream
        Source of signs.
    seen
        Evaluations in float32, on the first examples of the order.
    changed, compared
        Number of errors that the precision changes, of how many.
    """

    models: MixedModels
    data: Data
    order: NDArray[np.int64]
    deviation: float
    stream: np.random.Generator
    seen: dict[Recipe, Evaluation] = field(default_factory=dict)
    changed: int = 0
    compared: int = 0

    @cached_property
    def coarse(self) -> MixedModels:
        """The models in bfloat16."""
        return self.models.in_precision("bfloat16")

    def begin_(self, recipes: Sequence[Recipe]) -> None:
        """Evaluate models on the first examples in float32, by which the graph of all is checked."""
        self._grow_(dict.fromkeys(recipes, min(FEWEST, self.n)))

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.order)

    def used(self, recipe: Recipe) -> int:
        """Return on how many examples a model was evaluated in float32."""
        return len(self.seen[recipe].losses) if recipe in self.seen else 0

    def complete(self, coarse: Mapping[Recipe, Evaluation], share: float = 1.0) -> dict[Recipe, Evaluation]:
        """Return values of models that were evaluated in bfloat16 on all examples.

        Parameters
        ----------
        coarse
            Evaluations in the order of the data.
        share
            Share of the squared standard error that may be left.

        Returns
        -------
        dict
            One value per example, as in `fedsim.analysis.samples.tolerance.Estimates`; those in float32 where that many
            were needed.
        """
        first = {recipe: _first(each, self.order) for recipe, each in coarse.items()}
        # No sum of a loss that is not finite and a correction is, though the loss in float32 may be.
        wanted = {r: min(FEWEST, self.n) if each.losses.isfinite().all() else self.n for r, each in coarse.items()}
        while wanted:
            self._grow_(wanted)
            left = [recipe for recipe in wanted if self.used(recipe) < self.n]
            spread = dict(zip(left, self._spreads(left, first), strict=True))
            allowed = share * self.deviation**2
            needed = {recipe: square / (allowed + square / self.n) for recipe, square in spread.items()}
            # Where losses in float32 are not finite, all are needed.
            wanted = {
                recipe: _rounded(number) if number <= self.n // 4 else self.n
                for recipe, number in needed.items()
                if not number <= self.used(recipe)
            }
        alike: dict[int, list[Recipe]] = defaultdict(list)
        for recipe in coarse:
            alike[self.used(recipe)].append(recipe)
        found = {recipe: in_original_order(self.seen[recipe], self.order) for recipe in alike.pop(self.n, [])}
        for recipes in alike.values():
            found |= self.corrected({recipe: coarse[recipe] for recipe in recipes}, first)
        return {recipe: found[recipe] for recipe in coarse}

    def errors(self, coarse: Mapping[Recipe, Evaluation], left: Matrix, further: float) -> Matrix:
        """Return what the difference of the precisions adds to standard errors of mean losses, shape [models].

        Models that would be known well enough with more examples in float32 see these, if that costs less than more
        examples in bfloat16.

        Parameters
        ----------
        coarse
            Evaluations on the first m examples of the order.
        left
            Standard errors without that difference, shape [models].
        further
            Examples in bfloat16 that would be next, relative to m.
        """
        recipes, m = list(coarse), len(next(iter(coarse.values())).losses)
        self.begin_(recipes)
        squares = self._spreads(recipes, coarse)
        room = np.maximum(self.deviation**2 - np.square(left), 0)
        needed = squares / np.maximum(room + squares / self.n, 1e-300)
        wanted = {
            recipe: min(_rounded(number), m)
            for recipe, number in zip(recipes, needed, strict=True)
            if number <= min(self.used(recipe) + COST * further * m, m)
        }
        self._grow_(wanted)
        used = np.array([self.used(recipe) for recipe in recipes])
        return np.sqrt(self._spreads(recipes, coarse) * (1 / used - 1 / self.n))

    def corrected(
        self, values: Mapping[Recipe, Evaluation], coarse: Mapping[Recipe, Evaluation]
    ) -> dict[Recipe, Evaluation]:
        """Return values of models in bfloat16 with the estimated difference of the precisions added.

        Parameters
        ----------
        values
            One value per example, in the order of the data.
        coarse
            Evaluations in bfloat16 on the first examples of the order.
        """
        found: dict[Recipe, Evaluation] = {}
        alike: dict[int, list[Recipe]] = defaultdict(list)
        for recipe in values:
            alike[self.used(recipe)].append(recipe)
        for m, recipes in alike.items():
            losses, errors = (self._differences(recipes, coarse, name) for name in ("losses", "errors"))
            added = self._values(losses, self._spreads(recipes, coarse), m)
            if all(self.seen[recipe].errors.frac().eq(0).all() for recipe in recipes):
                self.changed += int(np.abs(errors).sum())
                self.compared += errors.size
                share = (self.changed + 1) / self.compared
                of_errors = self._values(0 * errors, np.full(len(recipes), share**2 / (1 / m - 1 / self.n)), m)
            else:
                of_errors = self._values(errors, _variances(errors), m)
            for k, recipe in enumerate(recipes):
                found[recipe] = Evaluation(values[recipe].losses + added[k], values[recipe].errors + of_errors[k])
        return found

    def _values(self, differences: Matrix, variances: Matrix, m: int) -> torch.Tensor:
        """Return values of all examples, shape [models, n]."""
        if not np.isfinite(differences).all():  # no errors are known
            return torch.full((differences.shape[1], self.n), torch.nan, dtype=torch.float64)
        deviation = np.sqrt(np.maximum(variances, 1e-30) * (1 / m - 1 / self.n))
        # Random signs, so that models without a difference do not share one artificial error.
        signs = np.where(np.arange(m) % 2, -1.0, 1.0)[:, None].repeat(differences.shape[1], 1)
        signs = self.stream.permuted(signs, axis=0)
        values = estimated_values(np.ones((self.n, 1)), self.order[:m], differences, deviation, signs)
        return torch.from_numpy(np.ascontiguousarray(values.T))

    def _differences(self, recipes: Sequence[Recipe], coarse: Mapping[Recipe, Evaluation], attribute: str) -> Matrix:
        """Return values in float32 minus those in bfloat16 where both are known, shape [m', models]."""
        exact = [getattr(self.seen[recipe], attribute).numpy() for recipe in recipes]
        pairs = zip(exact, recipes, strict=True)
        return np.stack([each - getattr(coarse[recipe], attribute).numpy()[: len(each)] for each, recipe in pairs], 1)

    def _spreads(self, recipes: Sequence[Recipe], coarse: Mapping[Recipe, Evaluation]) -> Matrix:
        """Return the variance of each model's differences, at least that of rounded losses, shape [models]."""
        seen = np.array([_variances(self._differences([recipe], coarse, "losses"))[0] for recipe in recipes])
        # The few differences may miss the examples that rounding changes most, which are those with large losses.
        rounding = [ROUNDING * float(coarse[recipe].losses.std()) for recipe in recipes]
        return np.maximum(seen, np.square(rounding))

    def _grow_(self, wanted: Mapping[Recipe, int]) -> None:
        """Evaluate models in float32 on the first examples, up to as many as wanted for each."""
        alike: dict[tuple[int, int], list[Recipe]] = defaultdict(list)
        for recipe, upto in wanted.items():
            if upto > (start := self.used(recipe)):
                alike[start, upto].append(recipe)
        for (start, upto), recipes in alike.items():
            taken = torch.from_numpy(self.order[start:upto]).to(self.data.targets.device)
            for recipe, new in self.models.evaluate(recipes, self.data[taken]).items():
                self.seen[recipe] = joined(self.seen[recipe], new) if recipe in self.seen else new


def _rounded(number: float) -> int:
    """Return a number of examples, at least as many, that several models share."""
    return FEWEST * 2 ** max(0, math.ceil(math.log2(max(number, 1.0) / FEWEST)))


def _variances(differences: Matrix) -> Matrix:
    """Return the variance of each model's differences, from what each example misses if predicted by the others."""
    with np.errstate(invalid="ignore"):
        return np.square((differences - differences.mean(0)) / (1 - 1 / len(differences))).mean(0)


def _first(evaluation: Evaluation, order: NDArray[np.int64]) -> Evaluation:
    """Return an evaluation in the order in which examples are taken."""
    taken = torch.from_numpy(order)
    return Evaluation(evaluation.losses[taken], evaluation.errors[taken])


def in_original_order(evaluation: Evaluation, order: NDArray[np.int64]) -> Evaluation:
    """Return an evaluation on examples that were taken in some order in their original order."""
    return _first(evaluation, np.argsort(order))


def joined(first: Evaluation, then: Evaluation) -> Evaluation:
    """Return the evaluation on the examples of both."""
    return Evaluation(torch.cat([first.losses, then.losses]), torch.cat([first.errors, then.errors]))
