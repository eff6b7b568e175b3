"""Settings of adapters, which are also the table ``[model.adapter]`` of an experiment."""

from dataclasses import dataclass
from typing import Literal

AdapterKind = Literal["lora", "dora", "ia3", "vera"]


@dataclass(frozen=True)
class Adapter:
    """What is added to a model, and where.

    Parameters
    ----------
    kind
        What is added to a linear layer: the product of two factors (``lora``), that and the length of its rows
        (``dora``), a scale of its outputs (``ia3``), or scales around two fixed random factors, which all layers and
        clients share (``vera``).
    rank
        Rank of the product: rows of the first factor and columns of the second.
    ranks
        Ranks of the clients, dealt in turn, in place of one ``rank``, which is then the largest, for methods that
        average products.
    alpha
        Scale of the product: it is multiplied by ``alpha / rank``.
    dropout
        Share of an adapter's inputs that is dropped in training.
    targets
        Layer expression; the linear layers among these get an adapter.
    head
        Whether the head trains whole, next to the adapters, and so do the layers for which the file of a pretrained
        model has no weights.
    """

    kind: AdapterKind = "lora"
    rank: int = 8
    ranks: tuple[int, ...] = ()
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "body"
    head: bool = True
