"""Ranks of LoRA that differ between clients: each has factors of the largest, of which only its own rows are not 0.

A row of A and a column of B that are both 0 have gradients of 0, so that they stay, whatever the optimizer: a client
computes what it would with factors of its own rank.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn, ones

from fedsim.models.adapters import NAME, RANKS, Factors, adapted_paths
from fedsim.models.params import Params

SCALE = "client_scale"


class ClientScaling(dict[str, float]):
    """The scale of an adapter's product, ``alpha / rank`` for the rank of the client whose factors are loaded.

    Parameters
    ----------
    largest
        The scale for the largest rank.
    factor
        The module of A, which has the client's ratio of ranks as a buffer.
    """

    def __init__(self, largest: float, factor: nn.Module) -> None:
        super().__init__({NAME: largest})
        self.factor = factor

    def __getitem__(self, name: str) -> Tensor:  # type: ignore[override]
        """Return the scale, as a tensor."""
        return self.get(name, 0.0) * self.factor.get_buffer(SCALE)


def deal_ranks_(model: nn.Module, ranks: Sequence[int]) -> None:
    """Let the clients' ranks be these, dealt in turn, in a model with adapters of the largest one."""
    for path in adapted_paths(model):
        module: Any = model.get_submodule(path)
        factor = module.get_submodule(f"lora_A.{NAME}")
        factor.register_buffer(SCALE, ones((), dtype=factor.get_parameter("weight").dtype))
        module.scaling = ClientScaling(module.scaling[NAME], factor)
        vars(module)[RANKS] = tuple(ranks)


def cut_to_rank(factors: Sequence[Factors], params: Params, client: int) -> Params:
    """Return a client's parameters with the rows of A and the columns of B beyond its rank 0, and with its scale."""
    cut = dict(params)
    for each in factors:
        if (rank := each.rank_of(client)) is None:
            continue
        for key, dimension in ((each.first, 0), (each.second, 1)):
            if key in cut:
                cut[key] = cut[key].clone()
                cut[key].narrow(dimension, rank, cut[key].shape[dimension] - rank).zero_()
        if (scale := each.first.removesuffix("weight") + SCALE) in cut:
            cut[scale] = cut[scale].new_tensor(each.ratio_of(client))
    return cut
