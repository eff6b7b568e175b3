"""Similarity of models as functions: how often they predict the same."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import torch
from torch import Tensor, nn

from fedsim.analysis.calls import of_models
from fedsim.analysis.mixing.mixes import Pair, pairs_once
from fedsim.analysis.mixing.paired import check_inputs
from fedsim.analysis.models import Models
from fedsim.models.copies import loaded
from fedsim.models.params import Params
from fedsim.training.evaluation import examples_at_a_time

# Two probabilities that differ by less are the same.
SAME = 1e-4


@of_models
def similarity(models: Models, inputs: Tensor, *, pairs: Sequence[Pair] | None = None) -> pd.DataFrame:
    """Measure how often two models predict the same, without targets.

    Parameters
    ----------
    models
        Two or more models.
    inputs
        Inputs as the model takes them, shape [n, ...], on the model's device.
    pairs
        Pairs (base, other); by default all, each once.

    Returns
    -------
    pandas.DataFrame
        One row per pair: ``base, other, n``, ``same_class``, the share of examples, or of all positions of sequences,
        with the same most likely class, and ``same_probability``, the share of all classes' probabilities that differ
        by less than 1e-4. Both are NaN if an output of one of the models is not a number.

    Raises
    ------
    ValueError
        If there are fewer than two states, one does not fit the model, a pair names a state that is not there, or the
        model has a single output.

    References
    ----------
    ``outputs_sim`` and ``softmax_sim`` in the released code of arXiv 2307.06966.
    """
    states, ends = models.at_least(2), pairs_once(pairs, len(models))
    check_inputs(inputs)
    threads = models.threads
    batches = inputs.split(examples_at_a_time(inputs.device))
    with ThreadPoolExecutor(threads) as pool:
        shares = [batches[number::threads] for number in range(threads)]
        same, of = torch.stack(list(pool.map(lambda share: _count(models.model, states, share, ends), shares))).sum(0)
    values = (same / of).T.tolist()
    columns = {"base": [base for base, _ in ends], "other": [other for _, other in ends], "n": len(inputs)}
    return pd.DataFrame(columns | dict(zip(("same_class", "same_probability"), values, strict=True)))


def _check_classes(logits: Tensor) -> None:
    if logits.ndim < 2 or logits.shape[1] == 1:
        raise ValueError(
            "the model has one output for each example, whose softmax is always 1; "
            "similarity needs logits of two classes or more"
        )


def _count(model: nn.Module, states: Sequence[Params], batches: Iterable[Tensor], ends: Sequence[Pair]) -> Tensor:
    """Count equal values, NaN where there are no values, and all values: classes and probabilities, [2, pairs, 2]."""
    # Each thread's own, as a model may keep something.
    nets = [loaded(model, state) for state in states]
    counts = torch.zeros(2, len(ends), 2, dtype=torch.float64)
    with torch.inference_mode():
        for batch in batches:
            logits = [net(batch) for net in nets]
            _check_classes(logits[0])
            outputs = [each.softmax(1) for each in logits]
            classes = [output.argmax(1) for output in outputs]
            known = [not output.isnan().any() for output in outputs]
            for pair, (base, other) in enumerate(ends):
                close = (outputs[base] - outputs[other]).abs() < SAME
                equal = classes[base] == classes[other]
                found = [equal.sum(), close.sum()] if known[base] and known[other] else [torch.nan, torch.nan]
                counts[:, pair] += torch.tensor([found, [equal.numel(), close.numel()]], dtype=torch.float64)
    return counts
