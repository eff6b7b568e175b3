"""A strategy's step at the end of a round, and what is recorded of every round's step."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fedsim.experiment.measuring.products import step_with_products
from fedsim.models.variance import variances
from fedsim.results.records import Records
from fedsim.strategy import ClientUpdate, Received, Strategy


def step_and_record(
    strategy: Strategy, server_round: int, received: Received, records: Records, constant: Collection[str] = ()
) -> None:
    """Let a strategy aggregate a round's updates, and record what that does to variances and products.

    ``constant`` are the keys of tensors that begin as constants.
    """
    step_with_products(strategy, server_round, received, records)
    rows = [{"round": server_round, **row} for row in variance_rows(strategy, received.updates, constant)]
    if rows:
        records.append("variances", rows)


def variance_rows(
    strategy: Strategy, updates: Sequence[ClientUpdate], constant: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield for each shared layer the clients' mean variance, and the ratio of the global model's to it.

    The variance of a layer is that of its tensors, each about its mean, weighted by their sizes. Clients count by their
    examples. The ratio is 1 where models are equal and, for a plain average of independent ones, the sum of their
    squared shares. Tensors that begin as constants do not count, as theirs is the variance of updates: normalisations,
    biases that begin at 0, LoRA's second factor.
    """
    for layer in strategy.layers:
        keys = [key for key in layer.parameters if strategy.global_model[key].numel() > 1 and key not in constant]
        sent = [update for update in updates if any(key in update.variances for key in keys)]
        if layer.kind == "norm" or not sent:
            continue
        sizes = {key: strategy.global_model[key].numel() for key in keys}
        own, total = _pooled(variances(strategy.global_model, keys), sizes), sum(each.num_examples for each in sent)
        mean = math.fsum(each.num_examples / total * _pooled(each.variances, sizes) for each in sent)
        is_known = 0 < mean < math.inf and own < math.inf
        yield {"layer": layer.name, "variance": _or_none(mean), "ratio": own / mean if is_known else None}


def _pooled(of: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    sizes = {key: size for key, size in sizes.items() if key in of}
    return math.fsum(of[key] * size for key, size in sizes.items()) / max(1, sum(sizes.values()))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
