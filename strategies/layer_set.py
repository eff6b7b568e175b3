"""One layer group is averaged: FedPer, LG-FedAvg and FedBN among others."""

from fedsim.strategy import Strategy


class LayerSet(Strategy, shared="all"):
    """Average one layer group every round: body is FedPer, head LG-FedAvg, !norm FedBN.

    References
    ----------
    FedPer: Arivazhagan et al. 2019, arXiv 1912.00818; LG-FedAvg: Liang et al. 2020, arXiv 2001.01523;
    FedBN: Li et al. 2021, arXiv 2102.07623.
    """


class FedPer(LayerSet, shared="body"):
    """Average all layers but the head, which is personal: FedPer.

    References
    ----------
    Arivazhagan et al. 2019, Federated learning with personalization layers, arXiv 1912.00818.
    """


class LgFedAvg(LayerSet, shared="head"):
    """Average the head on personal representations: LG-FedAvg.

    References
    ----------
    Liang et al. 2020, Think locally, act globally, arXiv 2001.01523.
    """


class FedBn(LayerSet, shared="!norm"):
    """Average all layers but normalisation, which is personal with its running statistics: FedBN.

    References
    ----------
    Li et al. 2021, FedBN: federated learning on non-IID features via local batch normalization, arXiv 2102.07623.
    """
