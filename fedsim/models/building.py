"""A newly built model made ready: its lazy modules initialised, its tensors such that they can be trained by name."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fedsim.models.params import is_finite

# A module's path, the name of an attribute, and the value that it has between forward passes.
Computed = tuple[str, str, Tensor]
# Attributes in which torch keeps parameters, modules and hooks; the last one, of nn.LSTM, keeps weights as they were
# before they were parametrised.
OF_TORCH = frozenset({*vars(nn.Module()), "_flat_weights"})


def initialise_lazy_(model: nn.Module, inputs: Tensor) -> None:
    """Let lazy modules find their sizes in a forward pass, in which they draw weights from torch's global random state.

    Parameters
    ----------
    inputs
        A few inputs as the model takes them, on the CPU.
    """
    if _uninitialised(model):
        training = {module for module in model.modules() if module.training}
        model.eval()  # which leaves running statistics alone
        with torch.no_grad():
            model(inputs)
        for module in model.modules():
            module.training = module in training


def make_trainable_(model: nn.Module) -> None:
    """Give each buffer memory of its own, let no graph stay in the model, and check all tensors.

    Raises
    ------
    ValueError
        If a tensor cannot be trained, averaged and saved under its name; the message says which, and what helps.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "it is a script of torch.jit, which cannot be copied and trained by name; give the module itself"
        )
    if left := _uninitialised(model):
        raise ValueError(f"{left[0]!r} belongs to a lazy module that the forward pass does not use; remove the module")
    _check_registered(model)
    _reset_computed_(model)
    entries = model.state_dict(keep_vars=True)
    _check_names(model, entries)
    for name, value in entries.items():
        if problem := _problem(value):
            raise ValueError(f"{name!r} {problem}")
    _own_memory_(model, entries)
    _check_memory(entries)


def _uninitialised(model: nn.Module) -> list[str]:
    return [name for name, value in _named_tensors(model) if is_lazy(value)]


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _reset_computed_(model: nn.Module) -> None:
    """Let attributes that hooks compute before each forward pass be no part of its graph after it.

    The older weight normalisation, spectral normalisation and pruning of `torch.nn.utils` keep the weight so. A model
    that holds a graph cannot be copied.
    """
    computed: list[Computed] = []
    for path, module in model.named_modules():
        names = [name for name, value in vars(module).items() if isinstance(value, Tensor) and not value.is_leaf]
        if names and not module._forward_pre_hooks:
            attribute = f"{path}.{names[0]}".removeprefix(".")
            raise ValueError(
                f"the attribute {attribute!r} is computed from parameters when the model is built, which copies of the "
                "model do not follow; compute it in forward"
            )
        names += [name for name in _hooked(module) if name not in names]
        computed += [(path, name, getattr(module, name).detach().clone()) for name in names]
    if computed:
        hook = partial(_reset, computed=computed)
        hook(model)
        model.register_forward_hook(hook, always_call=True)


def _reset(model: nn.Module, *_: Any, computed: Sequence[Computed]) -> None:
    for path, name, value in computed:
        setattr(model.get_submodule(path), name, value)


def _hooked(module: nn.Module) -> Iterator[str]:
    """Yield the names of the attributes that torch's own hooks compute."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            yield hook.name
        elif isinstance(hook, BasePruningMethod):
            yield hook._tensor_name


def _check_registered(model: nn.Module) -> None:
    """Check that no list, set or other attribute, in which torch does not look, has tensors that should train."""
    known = set(map(id, model.parameters()))
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            held = [] if name in OF_TORCH else _held(value, set())
            if any(each.requires_grad and id(each) not in known for each in held):
                attribute = f"{path}.{name}".removeprefix(".")
                kind = type(value).__name__
                raise ValueError(
                    f"the {kind} {attribute!r} has parameters that torch does not see there, so that they would never "
                    "be trained or sent; use nn.Parameter, nn.ModuleList, ModuleDict or ParameterList, or "
                    "requires_grad_(False)"
                )


def _held(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_leaf:  # any other is computed
            yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, list | tuple | set | frozenset | dict) and id(value) not in seen:
        seen.add(id(value))  # a container may hold itself
        for each in value.values() if isinstance(value, dict) else value:
            yield from _held(each, seen)


def _check_names(model: nn.Module, entries: Mapping[str, Any]) -> None:
    tensors = dict(_named_tensors(model))
    for name in entries:
        if name not in tensors:
            raise ValueError(
                f"its state dict has {name!r}, which is no parameter or buffer, such as what get_extra_state and "
                "quantised modules add; register it as a buffer, or quantise the model after the run"
            )
    for name, value in model.named_parameters():
        if value.requires_grad and name not in entries:
            raise ValueError(f"the parameter {name!r} is not in its state dict; let state_dict return every parameter")


def _problem(value: Tensor) -> str | None:
    """Return why an entry cannot be trained, averaged or saved, and what helps."""
    is_parameter = isinstance(value, nn.Parameter)
    if value.is_meta:
        return "is on the device 'meta' and has no values; build the model on the CPU"
    if value.layout != torch.strided or value.is_quantized:
        kind = "quantised" if value.is_quantized else str(value.layout).removeprefix("torch.")
        return f"is {kind}; register it as a buffer with persistent=False if it never changes, or make it dense"
    if is_parameter and value.requires_grad and value.is_floating_point() and value.dtype.itemsize == 1:
        return f"is {value.dtype} and trained, for which torch has no SGD; use bfloat16, or requires_grad = False"
    if is_parameter and _overlaps_itself(value):
        return "has values that share memory, as expand makes them, which cannot be trained apart; use clone()"
    if value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None):
        return (
            "has a hook for its gradient (register_hook), which copies of the model lose; change the gradient in "
            "a hook of its module, or parametrise it, such as by a product with a mask"
        )
    if is_parameter and not is_finite({"": value.detach()}):
        return "has values that are not finite before training; initialise it"
    return None


def _own_memory_(model: nn.Module, entries: Mapping[str, Tensor]) -> None:
    """Give buffers that `expand` has made a value in memory for each element: loading a state dict writes them."""
    for name, value in entries.items():
        if _overlaps_itself(value):
            path, _, last = name.rpartition(".")
            model.get_submodule(path)._buffers[last] = value.clone(memory_format=torch.contiguous_format)


def _overlaps_itself(value: Tensor) -> bool:
    return value.numel() > _extent(value)


def _extent(value: Tensor) -> int:
    """Return the number of elements in memory from a tensor's first to its last."""
    if not value.numel():
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))


def _check_memory(entries: Mapping[str, Tensor]) -> None:
    """Check that distinct tensors have memory of their own: averaging one would change the other, or not, by chance."""
    stored: dict[int, dict[int, tuple[str, Tensor]]] = {}
    for name, value in entries.items():
        if value.numel() and not _overlaps_itself(value):
            stored.setdefault(value.untyped_storage().data_ptr(), {}).setdefault(id(value), (name, value))
    for together in stored.values():
        for (first, one), (second, other) in combinations(together.values(), 2):
            if _overlap(one, other):
                raise ValueError(
                    f"{second!r} and {first!r} share memory but are two tensors; tie them by giving both modules the "
                    "same parameter, or use clone()"
                )


def _overlap(one: Tensor, other: Tensor) -> bool:
    (first, last), (start, end) = (
        (value.storage_offset() * size, (value.storage_offset() + _extent(value)) * size)
        for value, size in ((one, one.element_size()), (other, other.element_size()))
    )
    if last <= start or end <= first:
        return False
    if one.dtype != other.dtype:
        return True
    taken = torch.zeros(max(last, end) // one.element_size(), dtype=torch.bool)
    taken.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), other.storage_offset()).any())
