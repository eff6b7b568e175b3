"""Clients with so few test examples that their values say little."""

import pandas as pd

from fedsim.results.report.comparing.question import Question
from fedsim.results.result import Result

FEW_EXAMPLES = 10


def few_examples(result: Result, question: Question) -> pd.Series:
    """Return the numbers of test examples of the clients that have fewer than ten, in the round that is shown.

    Returns
    -------
    counts
        Number of examples by client.
    """
    rows = result.of("personalised", question.metric)
    shown = rows[(rows["round"] == question.round_of(result)) & rows["value"].notna()]
    counts = shown.set_index("client")["n"].sort_index()
    return counts[counts < FEW_EXAMPLES]
