"""The parts of a run's page about wide networks: exponentially weighted features, and calibrated barriers."""

from collections.abc import Iterator

import pandas as pd

from fedsim.analysis.mixing.names import AVERAGE
from fedsim.results.measured import examples
from fedsim.results.report.drawing import connectivity, width
from fedsim.results.report.pages.pictured import pictured
from fedsim.results.report.pages.section import Section

EXPONENTIAL_TEXT = (
    "Whether mixed models are those of networks whose hidden units do not overlap, by layer, after round {round}, at "
    "t = {t:g}: cosine between the mixed model's features and the mix weighted by (1 - t)^l and t^l for the l-th "
    "weighted sum. Compare with both controls: the other's units in random order, and ReLU units of independent "
    "normal inputs, which have {control} without any structure. Why: disjoint units have a ratio of norms of 0 and "
    "an additive nonlinearity. Lines are means over {mean}, bands span the smallest to the largest. Measured on {data}."
)
CALIBRATED_TEXT = (
    "Barriers of whole models at t = {t:g}, minus the mean loss of the ends: as they are, with the mixed model's "
    "logits at their best temperature, and with those of all models. What calibration removes was only the length of "
    "the logits, which averaging shrinks; mean over {mean}. Measured on {data}."
)


def exponential_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    """Yield the section between clients, and with their average where a table has rows of it."""
    for part, suffix, title, words in _by_ends(rows, data):
        words |= {"round": part["round"].max(), "control": _control(part["exponential_control"])}
        text = EXPONENTIAL_TEXT.format(**words)
        yield pictured(f"exponential{suffix}", f"Features of wide networks {title}", text, width.exponential(part))


def calibrated_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    """Yield the sections of the clients with their average, and between clients."""
    for part, suffix, title, words in _by_ends(rows, data):
        text = CALIBRATED_TEXT.format(**words)
        yield pictured(f"calibrated{suffix}", f"Calibrated barriers {title}", text, width.calibrated(part))


def _control(values: pd.Series) -> str:
    """Return what the control is in all layers, as away from t = 1/2 it depends on the power l."""
    low, high = f"{values.min():.4f}", f"{values.max():.4f}"
    return low if low == high else f"{low} to {high}"


def _by_ends(rows: pd.DataFrame, data: str) -> Iterator[tuple[pd.DataFrame, str, str, dict[str, object]]]:
    """Yield the rows of models with their average, and with each other, next to t = 1/2, with words for both."""
    of_average = rows["other"] == AVERAGE
    for every_t, suffix, title, mean in (
        (rows[of_average], "", "of the clients with their average", "the clients"),
        (rows[~of_average], "-pairs", "between clients", "the pairs"),
    ):
        if len(every_t):
            part = connectivity.halfway(every_t)
            yield part, suffix, title, {"t": part["t"].iloc[0], "mean": mean, "data": examples(part, data)}
