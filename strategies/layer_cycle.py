"""One layer after the other is averaged."""

from typing import Literal

from fedsim.models.layers import LayerGroup
from fedsim.strategy import Count, Option, Strategy


class LayerCycle(Strategy):
    """Average one layer a round, one after the other, and begin again.

    References
    ----------
    Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966, round-robin averaging.
    """

    order: Literal["shallow-first", "deep-first"] = Option("shallow-first", "From the input to the output, or back.")
    rounds_each: Count = Option(1, "Rounds before it is the next layer's turn.")

    def shared(self, server_round: int) -> LayerGroup:
        names = self.layers.names if self.order == "shallow-first" else self.layers.names[::-1]
        layer = names[(server_round - 1) // self.rounds_each % len(names)]
        return LayerGroup(layer, (layer,))
