"""The sections of a run's page about what averaging does to the models."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from fedsim.analysis.mixing.names import AVERAGE, FACTORS, GROWING, kind_of
from fedsim.results.measured import DATA, UNMATCHED, Kind, by_kind, examples
from fedsim.results.report.drawing import barriers, companions
from fedsim.results.report.drawing.barriers import has_paths, rows_of_kind
from fedsim.results.report.drawing.block_map import block_map
from fedsim.results.report.drawing.picture import Picture
from fedsim.results.report.pages.feature_sections import (
    cka_sections,
    connectivity_sections,
    matching_sections,
    prediction_sections,
    spectra_sections,
    stitching_sections,
)
from fedsim.results.report.pages.pictured import pictured
from fedsim.results.report.pages.section import Section
from fedsim.results.report.pages.width_sections import calibrated_sections, exponential_sections
from fedsim.results.result import Result

# Columns, the first that a table has, that are missing only where a model is not finite.
MISSING = ("loss", "same_class", "loss_interaction")
VISIBLE = 0.9  # ratio of variances from which on there is nothing to see
Build = Callable[[pd.DataFrame, str], Iterator[Section]]
BARRIER_TEXT = (
    "Each cell is the {metric} of a client's uploaded model with one layer replaced by the average over the clients, "
    "minus {reference}; {mean}. The first row, full, replaces all layers. Red: averaging the layer hurts. Blue, or "
    "with a minus: it helps{when}. Measured on {data}, the same in each round; clients are weighted by their training "
    "examples in the average."
)
OF_FEW_CLASSES = ", as is common where clients with few classes are measured on all classes"
BLOCKS_TEXT = (
    "The repeated blocks of the model, from the input at the top to the output, by the modules in them. Each cell is "
    "the {metric} of a client's uploaded model with one layer replaced by the average over the clients, minus a "
    "reference, after round {round}; {mean}, measured on {data}."
)
PAIRS_TEXT = (
    "As above, but between {pairs} pairs of clients, in both directions: the layer is at t = {t:g} on the line from "
    "one client's layer to the other's. The ends of the path are the model with its own layer and with the other's."
)
GROWING_TEXT = (
    "Growing sets of layers: {sets}. Each cell is the {metric} of the mixed model minus {reference}, {mean}; measured "
    "on {data}."
)
WINDOWS_TEXT = (
    "Sets of equally many consecutive layers, so that sizes do not matter. Each cell is the {metric} of "
    "the mixed model minus {reference}, {mean}; measured on {data}."
)
PATHS_TEXT = (
    "The {metric} of models whose layer is (1 - t) times their own plus t times the other's, after round {round}, "
    "{mean}, with {bands}. The panel of all layers (full) has a separate scale. Measured on {data}."
)
PATH_TITLES = {"product": "along the path of products", "aligned": "along the path of aligned factors"}
SIMULTANEOUS_TEXT = "{level:g} % confidence bands of the barrier, which hold for all of its rows together"
POINTWISE_TEXT = "bands of 1.96 standard errors of the barrier, which hold for each point by itself"
ROBUSTNESS_TEXT = (
    "After round {round}: one layer moved towards the average, and equally far in random directions. Where both cost "
    "the same, distance matters; where the average costs more, its direction does. Means over the clients, measured "
    "on {data}; the panel of all layers (full) has a separate scale."
)


def analysis_sections(result: Result) -> list[Section]:
    """Return the sections of all that was measured of the uploaded models, by the data that they were measured on."""
    sections = [*_barrier_sections(result.barriers, result.config.barriers.bands)]
    for name, build in SECTIONS.items():
        kinds = by_kind(result.measured(name))
        for kind, rows in kinds.items():
            values = [rows[column] for column in MISSING if column in rows]
            missing = missing_text(values[0]) if values else ""
            built = (replace(section, text=section.text + missing) for section in build(rows, kind[0]))
            sections += [titled(section, kind, kinds) for section in built]
    return [*sections, *_variance_sections(result.variances)]


def missing_text(values: pd.Series) -> str:
    """Say how many values of models are missing, in a sentence; nothing if none is."""
    if not (count := int((~np.isfinite(values.astype(float))).sum())):
        return ""
    return (
        f" Missing: {count} of {len(values)} values, of models whose loss or outputs are not finite; means are over "
        "the others, and what has no others is grey."
    )


def barrier_text(rows: pd.DataFrame, metric: str, mean: str) -> str:
    """Return what a heat map of barriers against the average shows."""
    own = barriers.is_of_clients(rows)
    return BARRIER_TEXT.format(
        metric=metric,
        reference=_reference(rows, metric) if own else "a reference",
        mean=mean,
        when="" if own else OF_FEW_CLASSES,
        data=examples(rows, str(rows["data"].iloc[0])),
    )


def _reference(rows: pd.DataFrame, metric: str) -> str:
    """Return what is subtracted where there is room for one reference."""
    reference = barriers.first_reference(rows, metric)
    if reference == "own_base":
        return f"the {metric} of the client's own model"
    return f"{barriers.REFERENCES[reference]} {metric}"


def titled(section: Section, kind: Kind, kinds: Iterable[Kind]) -> Section:
    """Return a section with its kind of rows, where there are others, in title and file name."""
    data, matching, path = kind
    every = list(dict.fromkeys(each.data for each in kinds))
    name, title = section.name, section.title
    if len(every) > 1:
        title = f"{title}, on {DATA.get(data, data)}"
    if data != every[0]:
        name = f"{name}-{data}"
    if matching != UNMATCHED:
        name, title = f"{name}-{matching}", f"{title}, after matching by {matching}"
    if path != FACTORS:
        name, title = f"{name}-{path}", f"{title}, {PATH_TITLES[path]}"
    return replace(section, name=name, title=title)


def _barrier_sections(table: pd.DataFrame, level: float) -> Iterator[Section]:
    kinds = by_kind(table)
    for kind, rows in kinds.items():
        for metric in ("loss", "error"):
            missing = missing_text(rows[metric])
            for section in _sections_of_metric(rows, kind[0], metric, level):
                yield titled(replace(section, text=section.text + missing), kind, kinds)


def _sections_of_metric(rows: pd.DataFrame, data: str, metric: str, level: float) -> Iterator[Section]:
    mean = "shown separately for both clients" if rows["base"].nunique() == 2 else "mean over the clients"
    words = {"metric": metric, "mean": mean, "data": examples(rows, data), "round": rows["round"].max()}
    single, pairs = rows_of_kind(rows, ""), rows[rows["other"] != AVERAGE]
    picture: Picture
    if (single["other"] == AVERAGE).any():
        text = barrier_text(rows, metric, mean)
        picture = barriers.maps(rows, metric, pairs=False)
        yield pictured(f"barriers-{metric}", f"Layer-wise {metric} barriers", text, picture)
        if metric == "loss" and (found := block_map(rows, metric)):
            yield pictured("blocks-loss", "Map of the blocks", BLOCKS_TEXT.format(**words), found)
    if (single["other"] != AVERAGE).any():
        count = len({frozenset(pair) for pair in zip(pairs["base"], pairs["other"], strict=True)})
        text = PAIRS_TEXT.format(pairs=count, t=barriers.at_the_middle(pairs, pairs=True)["t"].iloc[0])
        picture = barriers.maps(rows, metric, pairs=True)
        yield pictured(f"pairs-{metric}", f"Layer-wise {metric} barriers between clients", text, picture)
    kinds = set(rows["group"].map(kind_of))
    words["reference"] = _reference(rows, metric)
    if kinds & set(GROWING):
        sets = ", ".join(text for kind, text in barriers.GROWING_TEXTS.items() if kind in kinds)
        text, picture = GROWING_TEXT.format(**words, sets=sets), barriers.growing_maps(rows, metric)
        yield pictured(f"cumulative-{metric}", f"Cumulative {metric} barriers", text, picture)
    if any(kind.startswith("windows") for kind in kinds):
        text, picture = WINDOWS_TEXT.format(**words), barriers.window_maps(rows, metric)
        yield pictured(f"windows-{metric}", f"{metric.capitalize()} barriers of consecutive layers", text, picture)
    if len(single) and has_paths(single):
        bands = SIMULTANEOUS_TEXT.format(level=100 * level) if level else POINTWISE_TEXT
        text, picture = PATHS_TEXT.format(**words, bands=bands), barriers.paths(rows, metric)
        yield pictured(f"paths-{metric}", f"{metric.capitalize()} along the path", text, picture)


def _robustness_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    text = ROBUSTNESS_TEXT.format(data=examples(rows, data), round=rows["round"].max())
    for metric in ("loss", "error"):
        title = f"Robustness of the {metric} to changes of one layer"
        yield pictured(f"robustness-{metric}", title, text, companions.robustness(rows, metric))
    if rows["round"].nunique() > 1 and set(companions.ROBUSTNESS) <= set(rows["direction"]):
        text = "The same at the largest t, by round. Red in the last map: the average's direction is the harmful one."
        picture = companions.robustness_map(rows, "loss")
        yield pictured("robustness-rounds", "Robustness over the rounds", text, picture)


def _criticality_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    text = (
        "Each cell is the loss of a client's uploaded model with one layer reset to the start of the round, minus the "
        f"model's own loss; mean over the clients. Red: what the layer learned matters. Measured on "
        f"{examples(rows, data)}."
    )
    yield pictured("criticality", "Criticality of layers", text, companions.criticality(rows))


def _interaction_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    where = f"mean over the clients. Measured on {examples(rows, data)}."
    if (rows["first"] != "").any():
        last = rows["round"].max()
        text = f"Cost of mixing two layers together minus the costs of mixing each alone, after round {last}; "
        yield pictured("interaction", "Interaction of layers", text + where, companions.interaction(rows))
    if (rows["first"] == "").any():
        text = (
            "The full barrier minus the sum of the barriers of single layers, ± 1.96 standard errors for each round by "
            "itself; "
        )
        yield pictured(
            "unexplained",
            "Barrier that single layers do not explain",
            text + where,
            companions.unexplained(rows),
        )


def _similarity_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    text = (
        "How often the predictions of two clients' uploaded models agree; mean over the pairs. Measured on "
        f"{examples(rows, data)}."
    )
    yield pictured("similarity", "Function similarity", text, companions.similarity(rows))


def _distance_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    rows = rows.dropna(axis="columns", how="all")  # matched models have no common start
    what = "the average" if (rows["other"] == AVERAGE).any() else "each other"
    text = f"Distance of the clients' uploaded layers from {what}, mean over the clients."
    yield pictured("distances", f"Distances of the clients from {what}", text, companions.distances(rows))
    if {"cosine", "cosine_from_start"} & set(rows):
        text = (
            f"Cosines between the clients' uploaded layers and {what}, mean over the clients: of the weights, and of "
            "their changes since the start of the round where these were measured."
        )
        yield pictured("cosines", "Cosines of weights and of their changes", text, companions.cosines(rows))


def _variance_sections(rows: pd.DataFrame) -> Iterator[Section]:
    """Yield the section of variances, if averaging has cost some layer a visible part of its own."""
    if (rows["ratio"].astype(float) < VISIBLE).any():
        text = (
            "Variance of each layer's weights in the global model after the round, over the mean variance in the "
            "clients' uploads. 1: these are alike; an average of independent models has 1 over their number."
        )
        yield pictured("variances", "Variance that averaging leaves", text, companions.variances(rows))


def _against_average(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of models with their average, where there are some: all pairs would not fit on a page."""
    if "other" in table and (table["other"] == AVERAGE).any():
        return table[table["other"] == AVERAGE]
    return table


def _mainly(build: Build) -> Build:
    """Return the sections of the rows of models with their average, where there are some."""
    return lambda rows, data: build(_against_average(rows), data)


# In the order of the page.
SECTIONS: dict[str, Build] = {
    "robustness": _mainly(_robustness_sections),
    "criticality": _criticality_sections,
    "interaction": _mainly(_interaction_sections),
    "similarity": _similarity_sections,
    "distances": _mainly(_distance_sections),
    "connectivity": connectivity_sections,
    "exponential": exponential_sections,
    "stitching": stitching_sections,
    "cka": cka_sections,
    "spectra": spectra_sections,
    "prediction": prediction_sections,
    "calibrated": calibrated_sections,
    "matching": matching_sections,
}
