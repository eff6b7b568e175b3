"""Layers in which clients hardly differ are averaged less often."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Strategy


class FedLama(Strategy):
    """Average layers in which clients differ each round, and the others in each phi-th: FedLAMA.

    Parameters
    ----------
    phi
        Interval, in rounds, of the layers that are averaged less often; 1 is FedAvg.
    warm_up
        Rounds in which all layers are averaged before intervals are adjusted, which they are in each phi-th round.

    Raises
    ------
    ValueError
        If ``phi`` is not positive or ``warm_up`` is negative.

    References
    ----------
    Lee et al. 2023, Layer-wise adaptive model aggregation for scalable federated learning, arXiv 2110.10302,
    algorithms 1 and 2.

    Notes
    -----
    A round is the paper's base interval. Layers are sorted by their unit discrepancy
    d_l = sum_k p_k ||u_l - x_kl||^2 / (interval_l dim_l), with the shares p_k of the examples and the average u, as it
    was when they were last averaged. From the least on they get the interval phi, up to and with the first at which
    their share of all discrepancy, sum d_l dim_l, exceeds the share of the parameters that are left; that one is
    included as in the authors' code, where the paper's algorithm, as printed, compares other shares than its text.
    The authors' code has equal p_k, adjusts from the 7th round on (``warm_up = 6``) and leaves biases at the
    base interval; here a layer is its weight and bias together. Normalisation stays at the base interval, as there.
    """

    def __init__(self, model: nn.Module, phi: int = 2, warm_up: int = 6, **settings: Any) -> None:
        super().__init__(model, **settings)
        if phi < 1:
            raise ValueError(f"phi = {phi} must be at least 1, which is FedAvg")
        if warm_up < 0:
            raise ValueError(f"warm_up = {warm_up} must not be negative; 0 adjusts intervals from round phi on")
        self._phi, self._warm_up = phi, warm_up
        self._adjustable = [layer.name for layer in self.layers if layer.kind != "norm" and layer.parameters]
        self._interval = dict.fromkeys(self.layers.names, 1)
        self._discrepancy = dict.fromkeys(self._adjustable, 0.0)

    def shared(self, server_round: int) -> LayerGroup:
        """Share the layers whose interval ends with this round."""
        due = tuple(name for name, interval in self._interval.items() if server_round % interval == 0)
        return LayerGroup("due", due)

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return the averages, and measure how far clients are from them."""
        mean = super().aggregate(server_round, updates)
        for layer in self._adjustable:
            keys = self.layers[layer].parameters
            if keys[0] in mean:
                steps = self._interval[layer] * _dimension(mean, keys)
                self._discrepancy[layer] = _spread(mean, updates, keys) / steps
        if server_round > self._warm_up and server_round % self._phi == 0:
            self._adjust()
        return mean

    def state(self) -> Params:
        """Return the intervals and discrepancies, in the order of the layers."""
        return {
            "interval": torch.tensor(list(self._interval.values())),
            "discrepancy": torch.tensor(list(self._discrepancy.values()), dtype=torch.float64),
        }

    def load_state(self, state: Params) -> None:
        """Take the intervals and discrepancies."""
        self._interval = dict(zip(self._interval, state["interval"].tolist(), strict=True))
        self._discrepancy = dict(zip(self._discrepancy, state["discrepancy"].tolist(), strict=True))

    def _adjust(self) -> None:
        sizes = {layer: _dimension(self.global_model, self.layers[layer].parameters) for layer in self._adjustable}
        weights = {layer: self._discrepancy[layer] * sizes[layer] for layer in self._adjustable}
        self._interval = dict.fromkeys(self._interval, 1)
        discrepancy, left = 0.0, sum(sizes.values())
        for layer in sorted(self._adjustable, key=lambda name: self._discrepancy[name]):
            self._interval[layer] = self._phi
            discrepancy, left = discrepancy + weights[layer], left - sizes[layer]
            # Both shares, times both totals.
            if discrepancy * sum(sizes.values()) > left * sum(weights.values()):
                break


def _dimension(params: Params, keys: Sequence[str]) -> int:
    return sum(params[key].numel() for key in keys)


def _spread(mean: Params, updates: Sequence[ClientUpdate], keys: Sequence[str]) -> float:
    """Return the weighted mean of the clients' squared distances from the mean."""
    distances = [
        update.num_examples * sum(_square(update.shared[key] - mean[key]) for key in keys) for update in updates
    ]
    return sum(distances) / sum(update.num_examples for update in updates)


def _square(difference: Tensor) -> float:
    return float(difference.to(torch.float64).square().sum())
