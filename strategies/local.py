"""Nothing is averaged."""

from fedsim.strategy import Strategy


class Local(Strategy):
    """Average nothing: each client trains alone, the baseline of personalisation.

    References
    ----------
    Local-only training in Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966.
    """

    def prepare(self) -> None:
        self.group = self.layers.group("none")
