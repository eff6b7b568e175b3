"""The spawning method: one model, trained for a while, whose copies then continue with data in different orders."""

from collections.abc import Sequence

from torch import nn

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Strategy


class Spawning(Strategy):
    """Train the first client's model for some rounds, give it to all, and let each continue alone.

    Parameters
    ----------
    spawn_round
        Round after which all clients take the first one's model, and never share again; with 0 they never share.

    References
    ----------
    Fort et al. 2020, Deep learning versus kernel learning, arXiv 2010.15110; Zhou et al. 2023, Going beyond linear
    mode connectivity, arXiv 2307.08286, section 3.
    """

    def __init__(self, model: nn.Module, spawn_round: int = 1, **settings) -> None:
        super().__init__(model, **settings)
        self.spawn_round = spawn_round

    def shared(self, server_round: int) -> LayerGroup:
        """Share all layers until the models are spawned."""
        return self.layers.group("all" if server_round <= self.spawn_round else "none")

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Take the first client's model as it is."""
        return dict(updates[0].shared)
