"""One small group of layers after the other is trained and averaged, between rounds with all."""

from collections.abc import Sequence

from fedsim.models.layers import LayerGroup, Layers
from fedsim.strategy import Count, CountOrZero, LocalPlan, Option, Phase, Strategy


class FedPart(Strategy):
    """Train and average all layers for some rounds, then one group after the other, and begin again: FedPart.

    References
    ----------
    Wang et al. 2024, Why go full? Elevating federated learning through partial network updates, arXiv 2410.11559.

    Notes
    -----
    The defaults are the authors': 10 groups of a ResNet-8 and 21 of a ResNet-18, which are its convolutions, shortcuts
    among them, each with its normalisation, and the linear layer. Layers that are not trained in a round are frozen,
    running statistics included. With ``groups = ["all"]`` it is FedAvg.
    """

    groups: tuple[str, ...] = Option((), "Layer groups in turn; by default each layer with the norm that follows it.")
    warm_up: CountOrZero = Option(5, "Rounds with all layers at the beginning of each cycle.")
    rounds_each: Count = Option(2, "Rounds before it is the next group's turn.")

    def prepare(self) -> None:
        self.turns = [self.layers.group(group) for group in self.groups or _with_normalisation(self.layers)]
        for group in self.turns:
            if not self.layers.keys(group, buffers=False):
                names = ", ".join(self.layers.names)
                raise ValueError(f"groups has {group.name!r}, which leaves nothing to train; layers are: {names}")

    def shared(self, server_round: int) -> LayerGroup:
        position = (server_round - 1) % (self.warm_up + self.rounds_each * len(self.turns)) - self.warm_up
        return self.layers.group("all") if position < 0 else self.turns[position // self.rounds_each]

    def local_plan(self, server_round: int) -> LocalPlan:
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
