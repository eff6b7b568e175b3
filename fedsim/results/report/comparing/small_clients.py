"""Clients with so few test examples that their values say little."""

import pandas as pd

from fedsim.results.example_counts import targets_per_example
from fedsim.results.report.comparing.question import Question
from fedsim.results.result import Result

FEW_EXAMPLES = 10


def few_examples(result: Result, question: Question) -> pd.Series:
    """Return the numbers of test examples of the clients that have fewer than ten, in the round that is shown.

    There are none of sequences of various lengths, whose records count targets.

    Returns
    -------
    counts
        Number of examples by client.
    """
    shown = rows_shown(result, question)
    counts = shown[shown["value"].notna()].set_index("client")["n"].sort_index()
    if (each := targets_per_example(result)) is None:
        return counts[:0]
    counts = counts / each
    return counts[counts < FEW_EXAMPLES]


def counts_targets(result: Result) -> bool:
    """Tell whether the records count targets that do not tell the number of examples, as for sequences."""
    return targets_per_example(result) is None


def rows_shown(result: Result, question: Question) -> pd.DataFrame:
    """Return the rows of the clients that were evaluated in the round that is shown."""
    rows = result.of("personalised", question.metric)
    return rows[rows["round"] == question.round_of(result)]
