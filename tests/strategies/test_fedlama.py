"""FedLAMA: discrepancies, intervals and averages as in the paper's algorithms."""

import numpy as np
import pytest
import torch

from fedsim.errors import ConfigError
from fedsim.strategy import ClientUpdate
from strategies import FedLama
from tests.strategies.harness import Mlp, Play, assert_close, descend, mean_of, norm_mlp

LAYERS = ("fc1", "fc2", "fc3")


def intervals_of(d: list[float], dims: list[int], phi: int) -> list[int]:
    """Return the intervals by plain sums over sorted layers, as in the authors' code."""
    intervals = [1] * len(d)
    order = np.argsort(d)
    for last in range(len(order)):
        chosen = order[: last + 1]
        delta = sum(d[i] * dims[i] for i in chosen) / sum(d[i] * dims[i] for i in range(len(d)))
        share = sum(dims[i] for i in chosen) / sum(dims)
        intervals[order[last]] = phi
        if 1 - share < delta:
            break
    return intervals


def test_it_averages_what_the_papers_algorithm_says() -> None:
    play = Play("fedlama", {"phi": 2, "warm_up": 0}, rounds=6, absent={2: 1, 5: 2})
    dims = [play.initial[f"{layer}.weight"].numel() + play.initial[f"{layer}.bias"].numel() for layer in LAYERS]
    intervals, d = [1, 1, 1], [0.0, 0.0, 0.0]
    model, own = play.initial, dict.fromkeys(range(3), play.initial)
    took, averaged, seen = dict.fromkeys(range(3), 0), dict.fromkeys(LAYERS, -1), set()
    for server_round in play.rounds():
        due = [layer for layer, interval in zip(LAYERS, intervals, strict=True) if server_round % interval == 0]
        there = sorted(play.present(server_round))
        shares = [play.sizes[client] / sum(play.sizes[one] for one in there) for client in there]
        for client in there:
            fresh = [layer for layer in LAYERS if averaged[layer] >= took[client]]
            taken = {key: value for key, value in model.items() if key[:3] in fresh}
            own[client] = descend(play.model, own[client] | taken, play.batches(server_round, client), 0.1)
            took[client] = server_round
            assert {key[:3] for key in play.uploaded(client)} == set(due)
        mean = mean_of([own[client] for client in there], shares)
        model = model | {key: value for key, value in mean.items() if key[:3] in due}
        for layer in due:
            averaged[layer], place = server_round, LAYERS.index(layer)
            keys = [key for key in model if key.startswith(layer)]
            squares = [sum(((model[key] - own[client][key]) ** 2).sum().item() for key in keys) for client in there]
            spread = sum(share * square for share, square in zip(shares, squares, strict=True))
            d[place] = spread / (intervals[place] * dims[place])
        if server_round % 2 == 0:
            intervals = intervals_of(d, dims, 2)
        seen.add(tuple(intervals))
        assert_close(play.strategy.global_model, model)
        state = play.strategy.state()
        assert state["interval"].tolist() == intervals
        torch.testing.assert_close(state["discrepancy"], torch.tensor(d, dtype=torch.float64), rtol=1e-10, atol=1e-14)
    assert len(seen) > 1
    assert max(map(max, seen)) == 2


@pytest.mark.parametrize(
    ("discrepancies", "expected"),
    [
        # Of 30, 35 and 18 parameters, all discrepancy is 100: with two layers it is 10 % and 22 % of them are left.
        ((0.1, 0.2, 5.0), [4, 4, 4]),
        # All discrepancy is 287: with fc2 it is 12 % and 58 % are left, with fc1 44 % and 22 %.
        ((3.0, 1.0, 9.0), [4, 4, 1]),
    ],
)
def test_intervals_of_given_discrepancies(discrepancies: tuple[float, ...], expected: list[int]) -> None:
    strategy = FedLama(Mlp().double(), phi=4, warm_up=0)
    model = {key: torch.zeros_like(value) for key, value in Mlp().double().state_dict().items()}
    strategy.set_global_model(model)
    updates = []
    for client, sign in enumerate((1, -1)):  # the mean is 0, so that d_l is the square of each value
        values = {layer: sign * d**0.5 for layer, d in zip(LAYERS, discrepancies, strict=True)}
        updates.append(ClientUpdate(client, {key: value + values[key[:3]] for key, value in model.items()}, 1.0))
    strategy.aggregate(4, updates)
    assert strategy.state()["discrepancy"].tolist() == pytest.approx(discrepancies)
    dims = [4 * 6 + 6, 6 * 5 + 5, 5 * 3 + 3]
    assert intervals_of(list(discrepancies), dims, 4) == strategy.state()["interval"].tolist() == expected


def test_intervals_stay_until_the_warm_up_is_over_and_are_adjusted_in_each_phi_th_round() -> None:
    play = Play("fedlama", {"phi": 2}, rounds=8, local={"epochs": 1})
    adjusted = [server_round for server_round in play.rounds() if play.strategy.state()["interval"].max() > 1]
    assert adjusted == [8]  # as in the authors' code: after the 7th round, in an even one


def test_normalisation_stays_at_the_base_interval() -> None:
    play = Play("fedlama", {"phi": 2, "warm_up": 0}, rounds=4, model=norm_mlp)
    for _ in play.rounds():
        assert "bn.running_mean" in play.uploaded(0)


def test_with_every_interval_one_it_is_fedavg_bit_by_bit() -> None:
    lama, average = Play("fedlama", {"phi": 1, "warm_up": 0}), Play("full")
    for server_round in lama.rounds():
        assert_close(lama.strategy.global_model, average.round(server_round), tolerance=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"phi": 0}, "phi = 0 must be at least 1"), ({"warm_up": -1}, "warm_up = -1 must be at least 0")],
)
def test_bad_options_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play("fedlama", options)
