"""One layer group is averaged."""

from typing import Any

from torch import nn

from fedsim.models.layers import LayerGroup
from fedsim.strategy import Strategy


class LayerSet(Strategy):
    """Average one layer group every round: body is FedPer, head LG-FedAvg, !norm FedBN.

    Parameters
    ----------
    shared
        The layer group, in the layer language.

    Raises
    ------
    ValueError
        If the group cannot be read, or a pattern in it matches nothing.

    References
    ----------
    FedPer: Arivazhagan et al. 2019, arXiv 1912.00818; LG-FedAvg: Liang et al. 2020, arXiv 2001.01523;
    FedBN: Li et al. 2021, arXiv 2102.07623.

    Notes
    -----
    FedBN keeps running statistics personal too: they belong to their layer, so ``!norm`` does.
    """

    def __init__(self, model: nn.Module, shared: str = "all", **settings: Any) -> None:
        super().__init__(model, **settings)
        self._shared = self.layers.group(shared)

    def shared(self, server_round: int) -> LayerGroup:
        """Share the same group in each round."""
        return self._shared
