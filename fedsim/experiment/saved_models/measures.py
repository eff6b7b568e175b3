"""What ``fedsim barriers`` measures of checkpoints beside barriers and distances."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import Tensor, nn

from fedsim.analysis.cka import cka
from fedsim.analysis.connectivity import connectivity
from fedsim.analysis.mixing.average import with_average
from fedsim.analysis.mixing.mixes import Against
from fedsim.analysis.spectra import spectra
from fedsim.analysis.stitching import stitching
from fedsim.models.params import Params

CHECKPOINT_MEASURES = ("connectivity", "stitching", "cka", "spectra")


def measure_features(
    wanted: Sequence[str],
    model: nn.Module,
    states: Sequence[Params],
    inputs: Tensor,
    targets: Tensor,
    *,
    against: Against,
    weights: Sequence[float] | None,
    ts: Sequence[float] | None,
    threads: int,
) -> dict[str, pd.DataFrame]:
    """Return tables by the names of functions of `fedsim.analysis`.

    Parameters
    ----------
    wanted
        Of `CHECKPOINT_MEASURES`.
    ts
        Features are compared at those that are neither 0 nor 1, or halfway if there are none.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, or an argument is unknown or out of range.
    """
    if unknown := set(wanted) - set(CHECKPOINT_MEASURES):
        raise ValueError(f"measure {min(unknown)!r} must be one of {', '.join(CHECKPOINT_MEASURES)}")
    ends: dict[str, Any] = {"against": against, "weights": weights, "threads": threads}
    tables = {}
    if "connectivity" in wanted:
        inner = tuple(t for t in ts or () if 0 < t < 1)
        tables["connectivity"] = connectivity(model, states, inputs, ts=inner or (0.5,), **ends)
    if "stitching" in wanted:
        tables["stitching"] = stitching(model, states, inputs, targets, **ends)
    if "cka" in wanted:
        tables["cka"] = cka(model, states, inputs, threads=threads)
    if "spectra" in wanted:
        *own, average = with_average(model, states, weights)
        table = spectra(model, [average, *own])
        tables["spectra"] = table.assign(base=table["base"] - 1)  # the average is -1
    return tables
