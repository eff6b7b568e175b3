"""The aggregation error of LoRA's products, in every round in which factors are averaged."""

from collections.abc import Sequence

import pandas as pd

from fedsim.analysis.products import product_error
from fedsim.models.adapters import Factors, factors_of
from fedsim.models.params import Params
from fedsim.results.records import Records
from fedsim.strategy import ClientUpdate, Received, Strategy


def step_with_products(strategy: Strategy, server_round: int, received: Received, records: Records) -> None:
    """Let a strategy aggregate a round's updates, and record how far the products of its factors are from the mean.

    Nothing is recorded of a layer whose products the server does not know: those of a B, or an A, that trains and stays
    with its client.
    """
    factors = factors_of(strategy.model)
    before = strategy.global_model
    strategy.step(server_round, received)
    if received.updates and factors:
        rows = [
            {"layer": each.path, **errors}
            for each in factors
            if (errors := _errors(strategy, each, before, received.updates, server_round))
        ]
        if rows:
            records.write_table("products", server_round, pd.DataFrame(rows))


def _errors(
    strategy: Strategy, factors: Factors, before: Params, updates: Sequence[ClientUpdate], server_round: int
) -> dict[str, float]:
    keys = (factors.first, factors.second)
    if not any(key in update.shared for key in keys for update in updates):
        return {}
    trained = {
        key
        for phase in strategy.local_plan(server_round).phases
        for key in strategy.layers.keys(strategy.layers.group(phase.trainable))
    }
    frozen, members = strategy.model.state_dict(), []
    device = next(value for update in updates for value in update.shared.values()).device
    for update in updates:
        found = [update.shared.get(key) for key in keys]
        for place, key in enumerate(keys):
            if found[place] is None and key not in trained:
                found[place] = before.get(key, frozen[key]).to(device)
        if any(value is None for value in found):
            return {}
        members.append(found)
    firsts, seconds = zip(*members, strict=True)
    after = [strategy.global_model.get(key, frozen[key]) for key in keys]
    weights = [update.num_examples for update in updates]
    distance, size = product_error(firsts, seconds, weights, *(value.to(device) for value in after))
    return {"aggregation_error": distance / size if size else 0.0, "distance": distance, "size": size}
