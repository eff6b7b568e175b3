"""The parts of a run's page about features and units: connectivity, stitching, CKA, spectra and matching."""

from collections.abc import Iterator

import pandas as pd

from fedsim.analysis.mixing.names import AVERAGE
from fedsim.results.measured import examples
from fedsim.results.report.comparing.units import how_many
from fedsim.results.report.drawing import connectivity, prediction
from fedsim.results.report.pages.pictured import pictured
from fedsim.results.report.pages.section import Section

CONNECTIVITY_TEXT = (
    "Whether the features of mixed models are the mix of the features of both ends, by layer, after round {round}: "
    "{who}, at t = {t:g}{also}. Read the ratio, since 1 - cosine is small in the first layers of any two models. Far "
    "below 1, the layer is linearly connected; near 1, the mixed model's features are as far from the mix as the two "
    "models' features are from each other. With a coefficient of 1 they also have the length of the mix. Why: a layer "
    "is connected where its weights commute (exchanging them between the inputs of the two models changes far less "
    "than weights and inputs differ) and the nonlinearity after it is additive (near 0). Lines are means over {mean}, "
    "bands span the smallest to the largest; logarithmic scales omit values that are 0 up to rounding. Measured "
    "on {data}."
)
RATIOS_TEXT = (
    "The ratio by round, mean over {mean}. 0: the layer is linearly connected; 1: the mixed model's features are as "
    "far from the mix as the two models' features are from each other."
)
STITCHING_TEXT = (
    "Models with the layers of one client up to this one, and {other} after it, after round {round}. Where stitching "
    "costs no more than the two models themselves, the later layers can use the features of either. Lines are means "
    "over {mean}, bands span the smallest to the largest. Measured on {data}."
)
CKA_TEXT = (
    "Similarity of the features of two clients' uploaded models up to rotation and scale, for any order of their "
    "units: 1 is equal, 0 is unrelated; {pairs} pairs of clients. The first layers of models trained on similar data "
    "are always similar, so compare across layers and rounds. Measured on {data}."
)
RANK_TEXT = (
    "About how many directions a layer's weights span: the sum of the squared singular values over the largest one "
    "squared, for the clients' uploaded models and for their average. Directions that the clients do not share shrink "
    "in the average; compare its rank with theirs."
)
SPECTRA_TEXT = (
    "Singular values of each layer's weights relative to the largest one, after round {round}: steep lines mean few "
    "directions. Bands span the smallest to the largest of the clients; compare the average with them."
)
PREDICTION_TEXT = (
    "Loss halfway along the path on which a model takes one layer of another, minus the mean loss of the path's ends "
    "(the barrier), and what gradients and Hessian-vector products at both ends predict of it"
)
OVER_CLIENTS = "; mean over the clients. Measured on {data}."
RANKS_TEXT = (
    "How alike predicted and measured barriers rank the layers (Spearman's correlation), by round: 1 in the same "
    "order, 0 without relation. The line is the mean over the clients, the band spans the smallest to the largest."
)
OF_AVERAGE = " Matching changes the average only; the models themselves are shown without matching."
MATCHING_TEXT = (
    "Share of a layer's units that matching moved to another place, mean over the clients except the first, whose "
    "units stay. Few units of clients that start from the same model move (near 0); nearly all do between models with "
    "different initial weights."
)


def connectivity_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    """Yield the sections of the clients with their average, and between clients."""
    for every_t, suffix, words in _by_ends(rows):
        part = connectivity.halfway(every_t)
        own = part[part["base"] != AVERAGE]
        words |= {"data": examples(part, data), "round": part["round"].max(), "t": own["t"].iloc[0]}
        title = f"Feature connectivity {words['title']}"
        text = CONNECTIVITY_TEXT.format(**words)
        yield pictured(f"connectivity{suffix}", title, text, connectivity.connectivity(part))
        if part["round"].nunique() > 1:
            picture = connectivity.ratios(part)
            name, title = f"connectivity-rounds{suffix}", f"{title}, over the rounds"
            yield pictured(name, title, RATIOS_TEXT.format(**words), picture)


def stitching_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    """Yield the sections of clients stitched to their average, and to each other."""
    for part, suffix, words in _by_ends(rows):
        text = STITCHING_TEXT.format(**words, data=examples(part, data), round=part["round"].max())
        yield pictured(f"stitching{suffix}", f"Stitching {words['stitched']}", text, connectivity.stitching(part))


def cka_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    """Yield the section of the similarity of features."""
    pairs = len({frozenset(pair) for pair in zip(rows["base"], rows["other"], strict=True)})
    text = CKA_TEXT.format(pairs=pairs, data=examples(rows, data))
    yield pictured("cka", "Similarity of features (CKA)", text, connectivity.cka(rows))


def spectra_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    """Yield the sections of the weights' singular values."""
    more = "" if (rows["base"] != AVERAGE).any() else OF_AVERAGE
    yield pictured("stable-rank", "Stable rank of weights", RANK_TEXT + more, connectivity.stable_ranks(rows))
    text = SPECTRA_TEXT.format(round=rows["round"].max()) + more
    yield pictured("spectra", "Singular values of weights", text, connectivity.spectra(rows))


def prediction_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    """Yield the sections of predicted barriers."""
    text = PREDICTION_TEXT + OVER_CLIENTS.format(data=examples(rows, data))
    yield pictured("prediction", "Barriers predicted from the ends", text, prediction.maps(rows))
    if rows["round"].nunique() > 1 and rows["rank_correlation"].notna().any():
        title = "Agreement of predicted and measured barriers"
        yield pictured("prediction-ranks", title, RANKS_TEXT, prediction.correlations(rows))


def matching_sections(rows: pd.DataFrame, data: str) -> Iterator[Section]:
    """Yield the section of units that moved, if there was more than one model."""
    if len(connectivity.without_first(rows)):
        yield pictured("matching", "Units that matching moved", MATCHING_TEXT, connectivity.matching(rows))


def _by_ends(rows: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, str, dict[str, object]]]:
    """Yield the rows of models with their average, and with each other, with words for both."""
    if len(average := rows[rows["other"] == AVERAGE]):
        yield (
            average,
            "",
            {
                "title": "of the clients with their average",
                "stitched": "of clients and their average",
                "who": "each client with the average of all",
                "also": "; and the average with the mean of all clients' features, relative to their pairs",
                "other": "the average's",
                "mean": "the clients",
            },
        )
    if len(pairs := rows[rows["other"] != AVERAGE]):
        count = len({frozenset(pair) for pair in zip(pairs["base"], pairs["other"], strict=True)})
        yield (
            pairs,
            "-pairs",
            {
                "title": "between clients",
                "stitched": "of two clients",
                "who": f"{how_many(count, 'pair')} of clients",
                "also": "",
                "other": "another client's",
                "mean": "the pairs",
            },
        )
