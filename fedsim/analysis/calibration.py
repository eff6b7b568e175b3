"""Barriers of models whose logits have been calibrated by a temperature."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy  # its parts are imported when they are used
import torch
from torch import Tensor

from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixes import Against, Recipe, list_mixes
from fedsim.analysis.mixing.names import AVERAGE
from fedsim.analysis.mixing.paired import check_argument, check_paired
from fedsim.analysis.models import Models
from fedsim.training.evaluation import counts_of, cross_entropies, evaluate, mean_over_targets

BOUNDS = (-12.0, 12.0)  # of log beta


@of_models
def calibrated(
    models: Models,
    data: Data,
    *,
    against: Against = "average",
    ts: Sequence[float] | None = None,
    fit: Data | None = None,
) -> pd.DataFrame:
    """Measure barriers of whole models with the inverse temperature at which each has the lowest loss.

    Averages of wide networks shrink the logits, by ``2 ** (1 - L)`` for L layers of disjoint units, and so have a large
    loss where their predictions are right. The calibrated loss is ``min over beta > 0 of L(beta z)``, convex in beta.

    Parameters
    ----------
    data
        Examples with classes for targets.
    against, ts
        As in `fedsim.analysis.barriers`.
    fit
        Examples that beta is fitted on (default: ``data``).

    Returns
    -------
    pandas.DataFrame
        One row per mixed model: ``base, other, t, n, loss, beta, loss_calibrated`` and barriers, against the mean
        of the two ends; those of the average against the weighted mean of all states:

        - ``barrier``: without calibration;
        - ``barrier_merged``: with that of the mixed model alone;
        - ``barrier_all``: with that of all models.

    Raises
    ------
    ValueError
        If a state does not fit the model, targets are not classes, or an argument is unknown or out of range.

    Notes
    -----
    The idea is that of Ito et al., ICLR 2026, whose exact formula we do not know; the definition is ours. Models are
    evaluated as wholes, with running statistics as ``normalisation`` of the models says.
    """
    check_paired(data)
    _check_classes("targets", data)
    if fit is not None:
        check_argument("fit", fit)
        _check_classes("targets of fit", fit)
    mixes = list(list_mixes({"full": models.layers.names}, len(models), against, ts))
    models.compared(against)
    known: dict[Recipe, tuple[float, float, float]] = {}

    def measured(recipe: Recipe) -> tuple[float, float, float]:
        """Return loss, beta and calibrated loss of a mix."""
        if recipe not in known:
            net = models.mixed.build(recipe)
            logits, plain = _logits(net, data)
            of_fit, targets = (logits, data.targets.cpu()) if fit is None else (_logits(net, fit)[0], fit.targets.cpu())
            beta = best_beta(of_fit, targets)
            known[recipe] = plain, beta, _loss(beta, logits, data.targets.cpu())
        return known[recipe]

    rows = []
    for mix in mixes:
        loss, beta, lowest = measured(models.mixed.recipe(mix))
        everyone = mix.other == AVERAGE
        states = range(len(models)) if everyone else (mix.base, mix.other)
        ends = [measured(models.mixed.own(state)) for state in states]
        shares = models.shares if everyone else np.array([0.5, 0.5])
        plain, of_calibrated = (float(shares @ [end[k] for end in ends]) for k in (0, 2))
        rows.append(
            {"base": mix.base, "other": mix.other, "t": mix.t, "n": len(data), "loss": loss, "beta": beta}
            | {"loss_calibrated": lowest, "barrier": loss - plain, "barrier_merged": lowest - plain}
            | {"barrier_all": lowest - of_calibrated}
        )
    return pd.DataFrame(rows)


def best_beta(logits: Tensor, targets: Tensor) -> float:
    """Return the inverse temperature, from exp(-12) to exp(12), of the lowest mean cross-entropy over all targets."""
    found = scipy.optimize.minimize_scalar(
        lambda x: _loss(float(np.exp(x)), logits, targets), bounds=BOUNDS, method="bounded", options={"xatol": 1e-8}
    )
    return float(np.exp(found.x))


def _check_classes(name: str, data: Data) -> None:
    if data.targets.is_floating_point() or data.criterion is not cross_entropies:
        raise ValueError(f"{name} are not classes; only cross-entropy has a temperature")


def _loss(beta: float, logits: Tensor, targets: Tensor) -> float:
    return mean_over_targets(cross_entropies(beta * logits, targets), counts_of(targets, cross_entropies))


def _logits(net: torch.nn.Module, data: Data) -> tuple[Tensor, float]:
    found = evaluate(net, data.inputs, data.targets, data.criterion, keep_outputs=True)
    assert found.outputs is not None
    return found.outputs.double(), found.loss
