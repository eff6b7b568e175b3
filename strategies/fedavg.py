"""All layers are averaged."""

from fedsim.strategy import Strategy


class FedAvg(Strategy):
    """Average all layers every round: FedAvg.

    References
    ----------
    McMahan et al. 2017, Communication-efficient learning of deep networks, arXiv 1602.05629.
    """
