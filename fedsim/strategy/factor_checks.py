"""Checks that what is averaged of LoRA's factors means something."""

from collections.abc import Sequence

from fedsim.models.adapters import factors_of
from fedsim.strategy.flower import Strategy


def check_factors(strategy: Strategy, rounds: Sequence[int], *, own: bool) -> None:
    """Check that no second factor is averaged over first ones that differ between clients for good.

    Parameters
    ----------
    own
        Whether each client starts from its own weights.

    Raises
    ------
    ValueError
        If one is, or clients have starts of their own or different ranks that the method cannot take.
    """
    if own and getattr(strategy, "needs_common_start", False):
        raise ValueError("needs a common start of all clients' factors; set [model] initial = 'shared'")
    factors = factors_of(strategy.model)
    if any(each.ranks for each in factors) and not getattr(strategy, "takes_ranks", False):
        raise ValueError(
            "needs factors of one rank, and [model.adapter] ranks gives clients several; set rank, or use flexlora or "
            "flora"
        )
    for each in factors:
        first, second = strategy.layers.find(each.first), strategy.layers.find(each.second)
        if first is None or second is None:  # frozen
            continue
        averaged = [number for number in rounds if second in strategy.shared(number)]
        common = [number for number in rounds if first in strategy.shared(number)]
        if not averaged or averaged[0] in common:
            continue
        trains = any(_trains(strategy, first, number) for number in rounds)
        if (trains and not common) or (own and (not common or averaged[0] < common[0])):
            why = "starts as each client's own" if own else "trains and stays with each client"
            raise ValueError(
                f"averages {second} without {first}, which {why}: in another frame the same numbers mean another "
                "update; share both, or A alone, or freeze A, as share = 'B' of the strategy lora does"
            )


def _trains(strategy: Strategy, layer: str, server_round: int) -> bool:
    return any(layer in strategy.layers.group(phase.trainable) for phase in strategy.local_plan(server_round).phases)
