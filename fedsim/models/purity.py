"""Whether a model is a function of each example: it keeps nothing, draws nothing, and decides by no value."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedsim.models.copies import copy_of
from fedsim.models.draws import are_equal, same_draws, stream_states
from fedsim.models.frozen import train_mode_
from fedsim.models.operation import NotTraceableError
from fedsim.models.params import moves
from fedsim.models.tensors import tensors_in

# Functions through which a value of a tensor gets into Python.
READS = {
    *(getattr(Tensor, name) for name in ("__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__")),
    *(getattr(Tensor, name) for name in ("__contains__", "item", "tolist", "numpy", "is_nonzero", "equal", "allclose")),
    *(getattr(torch, name) for name in ("is_nonzero", "equal", "allclose")),
}
# Outputs may differ by this share of the largest, as rounding is relative to the largest of the summands.
TOLERANCE = 1e-4
ROUNDING = 1e-2  # instead of TOLERANCE between batches in half precision
VARIATION = 0.05  # standard deviation of what is added to weights


def outputs_of(used: nn.Module, fresh: nn.Module, probes: Tensor) -> Tensor:
    """Return what a model gives for some inputs, if it is a function of each of them.

    Parameters
    ----------
    used, fresh
        Two copies of the model in eval mode.

    Raises
    ------
    NotTraceableError
        If its outputs are not finite, or depend on the other examples, on an earlier call, or on random numbers; if it
        decides by the values of tensors what to do; or if a part of it is compiled, so that it cannot be looked into.
    """
    if is_compiled(used):
        raise NotTraceableError("a part of it is compiled")
    first, last = probes[:2], probes[-2:].flip(0)
    devices = [probes.device] if probes.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        before, reads = stream_states(probes.device), _Reads(used, first)
        with reads:
            of_first = used(first)
        kept = _kept(used)
        of_last, of_fresh = used(last), fresh(last)
        has_changed = _has_changed(kept, _kept(used))
        outputs = used(probes)
        if not are_equal(before, stream_states(probes.device)):
            raise NotTraceableError("it draws random numbers in evaluation mode")
    if not isinstance(outputs, Tensor) or not isinstance(of_fresh, Tensor):
        raise NotTraceableError("it does not map one input to one tensor")
    if not outputs.isfinite().all():
        raise NotTraceableError("its outputs are not finite, so that its graph cannot be checked")
    if has_changed or not is_close(of_last, of_fresh):
        raise NotTraceableError("it keeps something from one call to the next")
    if reads.found:
        raise NotTraceableError("it decides by the values of tensors what to do")
    if len(outputs) != len(probes):
        raise NotTraceableError("it does not give a row for each example")
    if not is_close(of_first, outputs[:2]) or not is_close(of_last, outputs[-2:].flip(0)):
        raise NotTraceableError("the outputs for an example depend on the others of its batch")
    return outputs


def is_compiled(model: nn.Module) -> bool:
    """Return whether a part of a model is compiled, so that it cannot be looked into."""
    modules = model.modules()
    return any(isinstance(m, torch.jit.ScriptModule) or type(m).__name__ == "OptimizedModule" for m in modules)


def writes_to_state(model: nn.Module, inputs: Tensor) -> bool:
    """Return whether a model changes its state dict in evaluation mode, as one does that keeps a running mean."""
    net = copy_of(model).eval()
    held = net.state_dict(keep_vars=True)  # so that no identity is reused
    before = [(id(value), value._version) for value in held.values()]
    with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []), torch.no_grad():
        net(inputs)
    after = [(id(value), value._version) for value in net.state_dict(keep_vars=True).values()]
    return before != after


def keeps_something(model: nn.Module, inputs: Tensor) -> bool:
    """Return whether a model keeps something besides its state dict from one call to the next, in evaluation mode."""
    net = copy_of(model).eval()
    held = {id(value) for value in net.state_dict(keep_vars=True).values()}
    found = []
    with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []), torch.no_grad():
        for batch in (inputs[:0], inputs, inputs.flip(0)):
            if len(batch):
                net(batch)
            found.append({name: each for name, each in _kept(net).items() if id(each[0]) not in held})
    return any(_has_changed(before, after) for before, after in pairwise(found))


def writes_to_inputs(model: nn.Module, inputs: Tensor) -> bool:
    """Return whether a model changes its inputs in place, in evaluation mode."""
    net, some = copy_of(model, shares_parameters=True).eval(), inputs.clone()
    before = some._version
    with same_draws(inputs.device), torch.no_grad(), suppress(Exception):  # if it fails, what runs it says how
        net(some)
    return some._version != before


def draws_numbers(model: nn.Module, inputs: Tensor, *, training: bool = False) -> bool:
    """Return whether a model draws from the global random streams, in evaluation mode or in training mode."""
    net = copy_of(model).eval()
    if training:
        train_mode_(net)
    with same_draws(inputs.device), torch.no_grad():
        before = stream_states(inputs.device)
        net(inputs)
        return not are_equal(before, stream_states(inputs.device))


def is_same_in_any_batch(model: nn.Module, probes: Tensor) -> bool:
    """Return whether a model gives the same for an example in another batch, and in another call.

    It may decide by the values of tensors what to do, and have compiled parts. Its weights are varied first.
    """
    net = _varied(model)
    with same_draws(probes.device), torch.no_grad():
        outputs, of_first, of_last = net(probes), net(probes[:2]), net(probes[-2:].flip(0))
    is_half = isinstance(of_first, Tensor) and of_first.itemsize < 4
    share = ROUNDING if is_half else TOLERANCE
    return is_close(of_first, outputs[:2], share) and is_close(of_last, outputs[-2:].flip(0), share)


def is_by_example(model: nn.Module, probes: Tensor) -> bool:
    """Return whether a model's outputs for an example depend on nothing else, so that batches may be cut anywhere.

    Its weights are varied first.
    """
    used = _varied(model)
    try:
        outputs_of(used, copy_of(used).eval(), probes)
    except Exception:  # whatever it is that a model's code raises, each client's batches may still suit it
        return False
    return True


def _varied(model: nn.Module) -> nn.Module:
    """Return a copy with slightly different weights: with a head of zeros, no output depends on anything."""
    net, generator = copy_of(model).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in filter(_is_own, net.parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(VARIATION * noise.to(parameter.device))
    return net


def _is_own(parameter: Tensor) -> bool:
    """Return whether a copy's parameter can be varied: a frozen one is the original's too."""
    return parameter.requires_grad and moves(parameter)


def is_close(found: Any, expected: Tensor, share: float = TOLERANCE) -> bool:
    """Return whether a result is a tensor that differs from what is expected by rounding only."""
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    tolerance = share * float(expected.abs().nan_to_num(0, 0).max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


class _Reads(TorchFunctionMode):
    """Notes whether a value that depends on the inputs or the weights gets into Python."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.found = False
        # By identity, with the tensors themselves so that none is reused.
        self._known = {id(each): each for each in (inputs, *model.parameters(), *model.buffers())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(id(each) in self._known for each in tensors_in((args, kwargs))):
            self.found = self.found or func in READS
            name = getattr(func, "__name__", "")
            changed = args[:1] if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) else ()
            self._known |= {id(each): each for each in tensors_in((result, changed))}
        return result


def _kept(model: nn.Module) -> dict[str, tuple[Any, int]]:
    """Return what the modules hold besides each other: numbers and texts, and tensors with their versions."""
    return {name: each for path, module in model.named_modules() for name, each in _leaves(path, vars(module))}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, tuple[Any, int]]]:
    if isinstance(value, Tensor):
        yield path, (value, value._version)
    elif value is None or isinstance(value, bool | int | float | complex | str):
        yield path, (value, 0)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(f"{path}.{key}", each)
    elif isinstance(value, tuple | list):
        for number, each in enumerate(value):
            yield from _leaves(f"{path}.{number}", each)


def _has_changed(before: Mapping[str, tuple[Any, int]], after: Mapping[str, tuple[Any, int]]) -> bool:
    if before.keys() != after.keys():
        return True
    for name, (old, version) in before.items():
        new, later = after[name]
        if old is new:
            same = version == later
        elif isinstance(old, Tensor) and isinstance(new, Tensor):
            same = version == old._version and old.shape == new.shape and torch.equal(old, new)
        else:
            same = type(old) is type(new) and bool(old == new or old != old)
        if not same:
            return True
    return False
