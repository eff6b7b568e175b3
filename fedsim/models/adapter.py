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
        ``lora`` adds the product of two factors, ``dora`` trains the length of the rows as well, ``ia3`` scales
        outputs, ``vera`` scales the rows of two random factors that all layers and clients share.
    rank
        Number of rows of the first factor and of columns of the second.
    ranks
        Ranks of the clients, dealt in turn, of which ``rank`` is the largest; if empty, all have that.
    alpha
        The product is multiplied by ``alpha / rank``.
    dropout
        Share of the inputs of the first factor that is dropped in training.
    targets
        Layer expression; the linear layers among these get an adapter.
    head
        Whether the head trains whole, next to the adapters.
    """

    kind: AdapterKind = "lora"
    rank: int = 8
    ranks: tuple[int, ...] = ()
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "body"
    head: bool = True
