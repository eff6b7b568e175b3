"""Similarity of models as functions: how often they say the same."""

import copy
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.analysis.mixing.mixes import Pair, list_mixes
from fedsim.models.params import Params, fit_all
from fedsim.training.evaluation import ACCELERATOR_BATCH, EVALUATION_BATCH

# Up to which two probabilities are the same.
SAME = 1e-4


def similarity(
    model: nn.Module,
    states: Sequence[Params],
    inputs: Tensor,
    *,
    pairs: Sequence[Pair] | None = None,
    threads: int = 1,
) -> pd.DataFrame:
    """Measure how much of what two models predict is the same, without targets.

    Parameters
    ----------
    model
        Gives the architecture; it is not changed, and models are evaluated in eval mode.
    states
        State dicts of at least two models.
    inputs
        Inputs as the model takes them, shape [n, ...], on the model's device.
    pairs
        Pairs (base, other); by default all, each once.
    threads
        That work at a time; the numbers do not depend on it.

    Returns
    -------
    pandas.DataFrame
        One row per pair: ``base, other, n``, ``same_class``, the share of examples, or of all positions of sequences,
        with the same most likely class, and ``same_probability``, the share of all classes' probabilities that differ
        by less than 1e-4.

    Raises
    ------
    ValueError
        If there are fewer than two states, one does not fit the model, or a pair names a state that is not there.

    References
    ----------
    ``outputs_sim`` and ``softmax_sim`` in the released code of arXiv 2307.06966.
    """
    fitted = fit_all(model, states, at_least=2)
    wanted = list(combinations(range(len(states)), 2)) if pairs is None else pairs
    ends = [(mix.base, mix.other) for mix in list_mixes({"": ()}, len(states), "pairs", (1.0,), wanted)]
    batches = inputs.split(EVALUATION_BATCH if inputs.device.type == "cpu" else ACCELERATOR_BATCH)
    with ThreadPoolExecutor(threads) as pool:
        shares = [batches[number::threads] for number in range(threads)]
        same, of = torch.stack(list(pool.map(lambda share: _count(model, fitted, share, ends), shares))).sum(0)
    values = (same.double() / of).T.tolist()
    columns = {"base": [base for base, _ in ends], "other": [other for _, other in ends], "n": len(inputs)}
    return pd.DataFrame(columns | dict(zip(("same_class", "same_probability"), values, strict=True)))


def _count(model: nn.Module, states: Sequence[Params], batches: Iterable[Tensor], ends: Sequence[Pair]) -> Tensor:
    """Count what is the same, and of how many: classes and probabilities, shape [2, pairs, 2], int64."""
    # Each thread's own: for a call, the parameters of the module itself are exchanged.
    model = copy.deepcopy(model).eval()
    counts = torch.zeros(2, len(ends), 2, dtype=torch.int64)
    with torch.inference_mode():
        for batch in batches:
            outputs = [functional_call(model, state, (batch,)).softmax(1) for state in states]
            classes = [output.argmax(1) for output in outputs]
            for pair, (base, other) in enumerate(ends):
                close = (outputs[base] - outputs[other]).abs() < SAME
                equal = classes[base] == classes[other]
                counts[:, pair] += torch.tensor([[equal.sum(), close.sum()], [equal.numel(), close.numel()]])
    return counts
