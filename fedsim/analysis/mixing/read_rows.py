"""Rows of results that no output depends on: behind the last attention, all but the token that a classifier reads."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedsim.models.adapters import is_transposed
from fedsim.models.copies import copy_of
from fedsim.models.purity import READS
from fedsim.models.tensors import tensors_in

# Where the classes of modules come from whose code is known; any others may do with left-out rows what they like.
KNOWN = ("torch.nn", "transformers", "peft", "fedsim.models.architectures.of_one_tensor")
BASES = ("abc", "builtins", "collections", "typing")
# Functions with a gradient that may give numbers for NaN.
HIDE_NAN = {"nan_to_num", "nansum", "nanmean", "nanmedian", "nanquantile", "sign", "sgn", "fmax", "fmin"}


class ReadRows(NamedTuple):
    """The rows of a result, shape [n, rows, width], that outputs depend on.

    Parameters
    ----------
    shape
        n and the number of rows.
    places
        Examples and rows of those that are read.
    """

    shape: torch.Size
    places: tuple[Tensor, ...]

    def run(self, function: Callable[[Tensor], Any], values: Tensor) -> Any:
        """Return what a row-wise function gives for the rows that are read; the others are NaN."""
        found = function(values[self.places])
        if not isinstance(found, Tensor):
            return found
        result = found.new_full((*self.shape, found.shape[-1]), math.nan)
        result[self.places] = found
        return result

    def are_of(self, args: Any) -> bool:
        """Tell whether these are the rows of a module's only argument."""
        return len(args) == 1 and isinstance(args[0], Tensor) and args[0].ndim == 3 and args[0].shape[:2] == self.shape


def is_row_wise(module: nn.Module) -> bool:
    """Tell whether each row of what a module gives depends on the same row of its input alone."""
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        return len(module.normalized_shape) == 1  # type: ignore[arg-type]
    return type(module) is nn.Linear or is_transposed(module)


def run_and_find(
    model: Callable[[Tensor], Any], inputs: Tensor, modules: Iterable[nn.Module]
) -> tuple[Any, dict[nn.Module, ReadRows]]:
    """Return a model's outputs and, of row-wise modules of whose results some rows are not read, those that are.

    NaN as the outputs' gradient gets into the gradients of all rows that they depend on near these values; a row behind
    a dead unit looks unread. Another model that reads it gets NaN, and is run again with all rows: see `SharedCalls`.
    Comparisons and indices have no gradient: see `partly_read`.

    Parameters
    ----------
    modules
        The row-wise modules to look at; one that is called several times counts as read.
    """
    found: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, args: Any, result: Any) -> None:
        found.setdefault(module, []).append(result if result.requires_grad else result.requires_grad_())

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        with torch.set_grad_enabled(bool(handles)):
            outputs = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    results = {module: some[0] for module, some in found.items() if len(some) == 1 and some[0].ndim == 3}
    if not isinstance(outputs, Tensor) or not outputs.requires_grad or not results:
        return outputs, {}
    nan = torch.full_like(outputs, math.nan)
    gradients = torch.autograd.grad(outputs, list(results.values()), nan, allow_unused=True)
    read = {}
    for module, gradient in zip(results, gradients, strict=True):
        # What has no gradient may still decide something, as the scores of experts do.
        if gradient is not None and not (rows := gradient.isnan().any(-1)).all():
            read[module] = ReadRows(rows.shape, rows.nonzero(as_tuple=True))
    return outputs.detach(), read


def partly_read(model: nn.Module, inputs: Tensor) -> frozenset[str]:
    """Return the paths of a model's row-wise modules with rows that its outputs for some inputs do not depend on.

    There are none if a part of it is of other code than torch's, Hugging Face's or peft's, or if it computes anything
    from their results that has no gradient, or numbers from NaN.
    """
    if not all(map(_is_known, model.modules())):
        return frozenset()
    net, escapes = copy_of(model).eval().requires_grad_(False), _Escapes()
    paths = {module: path for path, module in net.named_modules() if is_row_wise(module)}

    def watched(some: Tensor) -> Any:
        with escapes:
            return net(some)

    try:
        _, read = run_and_find(watched, inputs, paths)
    except Exception:  # a model's code may raise anything where its results have gradients
        return frozenset()
    return frozenset() if escapes.found else frozenset(paths[module] for module in read)


def _is_known(module: nn.Module) -> bool:
    """Return whether a module does what its class says, and the class and its bases are of known code."""
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return False
    return all(
        f"{each.__module__}.".startswith(tuple(f"{name}." for name in KNOWN + BASES)) for each in type(module).__mro__
    )


class _Escapes(TorchFunctionMode):
    """Notes whether tensors with a gradient give any without one, as in comparisons and indices, or numbers for NaN."""

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = any(each.requires_grad for each in tensors_in((args, kwargs or {})))
        result = func(*args, **(kwargs or {}))
        if taken:
            name = getattr(func, "__name__", "")
            made = tensors_in((result, args[:1] if name == "__setitem__" else ()))
            hides = name.rstrip("_") in HIDE_NAN or name.startswith("fake_quantize")
            self.found = self.found or hides or func in READS or any(not each.requires_grad for each in made)
        return result
