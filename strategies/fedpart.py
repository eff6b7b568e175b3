"""One small group of layers after the other is trained and averaged, between rounds with all."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedsim.models.layers import LayerGroup, Layers
from fedsim.strategy import LocalPlan, Phase, Strategy


class FedPart(Strategy):
    """Train and average all layers for some rounds, then one group after the other, and begin again: FedPart.

    Parameters
    ----------
    groups
        The groups in the order of their turns, in the layer language; by default each layer of the model, from the
        input to the output, with the normalisation that follows it.
    warm_up
        Rounds with all layers at the beginning of each cycle.
    rounds_each
        Rounds before the next group has its turn.

    Raises
    ------
    ValueError
        If a number of rounds is out of range, or a group cannot be read or has nothing to train.

    References
    ----------
    Wang et al. 2024, Why go full? Elevating federated learning through partial network updates, arXiv 2410.11559.

    Notes
    -----
    The defaults are the authors': 10 groups of a ResNet-8 and 21 of a ResNet-18, which are its convolutions, shortcuts
    among them, each with its normalisation, and the linear layer. Layers that are not trained in a round are frozen,
    running statistics included. With ``groups = ["all"]`` it is FedAvg.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: tuple[str, ...] = (),
        warm_up: int = 5,
        rounds_each: int = 2,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        if warm_up < 0:
            raise ValueError(f"warm_up = {warm_up} must not be negative; 0 never trains all layers together")
        if rounds_each < 1:
            raise ValueError(f"rounds_each = {rounds_each} must be at least 1")
        self._groups = [self.layers.group(group) for group in groups or _with_normalisation(self.layers)]
        for group in self._groups:
            if not self.layers.keys(group, buffers=False):
                names = ", ".join(self.layers.names)
                raise ValueError(f"groups has {group.name!r}, which leaves nothing to train; layers are: {names}")
        self._all = self.layers.group("all")
        self._warm_up, self._rounds_each = warm_up, rounds_each

    def shared(self, server_round: int) -> LayerGroup:
        """Share all layers, or the group whose turn it is."""
        position = (server_round - 1) % (self._warm_up + self._rounds_each * len(self._groups)) - self._warm_up
        return self._all if position < 0 else self._groups[position // self._rounds_each]

    def local_plan(self, server_round: int) -> LocalPlan:
        """Train what is shared."""
        return LocalPlan((Phase(self.shared(server_round).name),))


def _with_normalisation(layers: Layers) -> Sequence[str]:
    """Return an expression for each layer with parameters, together with those after it that are norms or have none."""
    groups: list[list[str]] = []
    for layer in layers:
        if groups and (layer.kind == "norm" or not layer.parameters):
            groups[-1].append(layer.name)
        else:
            groups.append([layer.name])
    # A layer may be called 'norm' or 'head', which are words of the language; in brackets a letter is a letter.
    return [" | ".join(f"[{name[0]}]{name[1:]}" for name in group) for group in groups]
