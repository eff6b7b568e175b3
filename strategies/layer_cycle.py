"""One layer after the other is averaged."""

from typing import Any, Literal

from torch import nn

from fedsim.models.layers import LayerGroup
from fedsim.strategy import Strategy


class LayerCycle(Strategy):
    """Average one layer a round, one after the other, and begin again.

    Parameters
    ----------
    order
        From the input to the output (``shallow-first``) or back (``deep-first``).
    rounds_each
        Rounds before the next layer has its turn.

    Raises
    ------
    ValueError
        If ``rounds_each`` is not positive.

    References
    ----------
    Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966, round-robin averaging.
    """

    def __init__(
        self,
        model: nn.Module,
        order: Literal["shallow-first", "deep-first"] = "shallow-first",
        rounds_each: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        if rounds_each < 1:
            raise ValueError(f"rounds_each = {rounds_each} must be at least 1")
        self._order = self.layers.names if order == "shallow-first" else self.layers.names[::-1]
        self._rounds_each = rounds_each

    def shared(self, server_round: int) -> LayerGroup:
        """Share the layer whose turn it is."""
        layer = self._order[(server_round - 1) // self._rounds_each % len(self._order)]
        return LayerGroup(layer, (layer,))
