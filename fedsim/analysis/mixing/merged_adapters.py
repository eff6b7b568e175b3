"""Layers with LoRA as plain ones: the product of the factors is added to the weight once, not to each output."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.analysis.mixing.mixes import Source
from fedsim.models.adapters import factors_of, is_transposed


class MergedAdapters:
    """The adapted layers of a model with their factors merged; numbers are the same to float tolerance.

    Parameters
    ----------
    model
        Its factors are read at each call, from whatever its entries hold then.
    memory
        Bytes of merged weights that are kept at a time, the last ones of each layer; where they would be more, a layer
        is not merged.
    """

    def __init__(self, model: nn.Module, memory: float) -> None:
        self._memory = memory
        self._entries = model.state_dict(keep_vars=True)
        self._factors = {model.get_submodule(each.path): each for each in factors_of(model)}
        self._weights: dict[nn.Module, tuple[Sequence[Source | None], Tensor]] = {}

    def has(self, module: nn.Module) -> bool:
        """Tell whether a module is a layer with factors."""
        return module in self._factors

    def outputs(self, module: nn.Module, sources: Sequence[Source | None], *args: Any) -> Tensor | None:
        """Return what a layer with factors gives for its inputs; None if it cannot be merged.

        Parameters
        ----------
        sources
            Sources of what is in the layer: where they are as before, so is its weight.
        """
        each = self._factors[module]
        base, bias = (self._entries.get(each.base.removesuffix("weight") + name) for name in ("weight", "bias"))
        if base is None or each.ranks or len(args) != 1 or not _adds_a_product(module):
            return None
        [inputs] = args
        if (
            not isinstance(inputs, Tensor)
            or inputs.dtype != base.dtype
            or torch.is_autocast_enabled(inputs.device.type)
        ):
            return None
        known = self._weights.get(module)
        if known is None and base.nbytes + sum(weight.nbytes for _, weight in self._weights.values()) > self._memory:
            return None
        if known is None or known[0] != sources:
            product = self._entries[each.second].double() @ self._entries[each.first].double()
            known = self._weights[module] = (sources, each.merged(base, product))
        return nn.functional.linear(inputs, known[1].T if each.transposed else known[1], bias)


def _adds_a_product(module: Any) -> bool:
    """Tell whether a layer's adapter does no more than that: no DoRA, no bias, no other kind of layer below."""
    base = module.get_base_layer()
    if not (type(base) is nn.Linear or is_transposed(base)) or hasattr(base, "parametrizations"):
        return False
    return not (module.merged or module.disable_adapters or module.lora_variant or any(module.lora_bias.values()))
