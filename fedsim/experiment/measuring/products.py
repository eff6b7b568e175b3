"""The aggregation error of LoRA's products, in every round in which factors are averaged."""

from collections.abc import Collection, Sequence

import pandas as pd
import torch

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
    if not factors:
        strategy.step(server_round, received)
        return
    phases = strategy.local_plan(server_round).phases
    trained = {key for each in phases for key in strategy.layers.keys(strategy.layers.group(each.trainable))}
    frozen = strategy.model.state_dict()
    before = frozen | strategy.global_model
    strategy.step(server_round, received)
    if received.updates:
        after = frozen | strategy.global_model
        rows = [
            {"layer": each.path, **errors}
            for each in factors
            if (errors := _errors(each, before, after, received.updates, trained))
        ]
        if rows:
            records.write_table("products", server_round, pd.DataFrame(rows))


def _errors(
    factors: Factors, before: Params, after: Params, updates: Sequence[ClientUpdate], trained: Collection[str]
) -> dict[str, float]:
    """Return the error of a layer's products; empty if the server does not know them."""
    keys = (factors.first, factors.second)
    if not any(key in update.shared for key in keys for update in updates):
        return {}
    device = next(value for update in updates for value in update.shared.values()).device
    members = []
    for update in updates:
        # A factor that did not train is that of the model before.
        if any(key in trained and key not in update.shared for key in keys):
            return {}
        first, second = (update.shared[key] if key in update.shared else before[key].to(device) for key in keys)
        members.append((first, factors.ratio_of(update.client) * second))
    firsts, seconds = zip(*members, strict=True)
    weights = [update.num_examples for update in updates]
    moved = None
    if not torch.equal(after[factors.base], before[factors.base]):
        moved = factors.product(after[factors.base].double() - before[factors.base].double()).to(device)
    first, second = (after[key].to(device) for key in keys)
    distance, size = product_error(firsts, seconds, weights, first, second, moved)
    return {"aggregation_error": distance / size if size else 0.0, "distance": distance, "size": size}
