"""Layers in which clients hardly differ are averaged less often."""

from collections.abc import Sequence

import torch

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Count, CountOrZero, Option, Strategy


class FedLama(Strategy):
    """Average layers in which clients differ each round, and the others in each phi-th: FedLAMA.

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

    phi: Count = Option(2, "Interval, in rounds, of the layers that are averaged less often; 1 is FedAvg.")
    warm_up: CountOrZero = Option(6, "Rounds with all layers before intervals change, as they do in each phi-th round.")

    def prepare(self) -> None:
        self.unplanned = "which layers are averaged less often" if self.phi > 1 else ""
        self.adjustable = [layer.name for layer in self.layers if layer.kind != "norm" and layer.parameters]
        discrepancy = torch.zeros(len(self.adjustable), dtype=torch.float64)
        self.memory = {"interval": torch.ones(len(self.layers), dtype=torch.int64), "discrepancy": discrepancy}

    def shared(self, server_round: int) -> LayerGroup:
        intervals = zip(self.layers.names, self.memory["interval"].tolist(), strict=True)
        return LayerGroup("due", tuple(name for name, interval in intervals if server_round % interval == 0))

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        mean = self.average(updates)
        intervals = dict(zip(self.layers.names, self.memory["interval"].tolist(), strict=True))
        discrepancy = self.memory["discrepancy"].tolist()
        for position, layer in enumerate(self.adjustable):
            keys = self.layers[layer].parameters
            if keys[0] in mean:
                elements = sum(mean[key].numel() for key in keys)
                discrepancy[position] = _spread(mean, updates, keys) / (intervals[layer] * elements)
        self.memory["discrepancy"] = torch.tensor(discrepancy, dtype=torch.float64)
        if server_round > self.warm_up and server_round % self.phi == 0:
            seldom = self._seldom(dict(zip(self.adjustable, discrepancy, strict=True)))
            self.memory["interval"] = torch.tensor([self.phi if n in seldom else 1 for n in self.layers.names])
        return mean

    def _seldom(self, discrepancy: dict[str, float]) -> set[str]:
        """Return the layers that are averaged in each phi-th round only."""
        sizes = {n: sum(self.global_model[key].numel() for key in self.layers[n].parameters) for n in discrepancy}
        weights = {layer: discrepancy[layer] * sizes[layer] for layer in discrepancy}
        seldom, taken, left = set[str](), 0.0, sum(sizes.values())
        for layer in sorted(discrepancy, key=lambda name: discrepancy[name]):
            seldom.add(layer)
            taken, left = taken + weights[layer], left - sizes[layer]
            # Both shares, times both totals.
            if taken * sum(sizes.values()) > left * sum(weights.values()):
                break
        return seldom


def _spread(mean: Params, updates: Sequence[ClientUpdate], keys: Sequence[str]) -> float:
    """Return the weighted mean of the clients' squared distances from the mean."""
    distances = [
        update.num_examples
        * sum(float((update.shared[key] - mean[key]).to(torch.float64).square().sum()) for key in keys)
        for update in updates
    ]
    return sum(distances) / sum(update.num_examples for update in updates)
