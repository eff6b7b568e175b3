"""A model that is run as Python code, but whose modules look up what they gave for the same inputs and weights."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.analysis.mixing.merged_adapters import MergedAdapters
from fedsim.analysis.mixing.mixes import Part, Recipe, Source
from fedsim.analysis.mixing.read_rows import ReadRows, run_and_find
from fedsim.models.copies import copy_of
from fedsim.models.params import Params
from fedsim.models.tensors import tensors_in

# Values that nobody changes, besides tensors.
FIXED = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True)
class _Call:
    """What a module gave.

    Parameters
    ----------
    sources
        Sources of the weights in it.
    taken, result
        Its arguments, and what it returned.
    versions
        How often each of their tensors had been written to.
    has_all_rows
        Whether no rows were left out of anything.
    """

    sources: tuple[Source | None, ...]
    taken: Any
    result: Any
    versions: tuple[int, ...]
    has_all_rows: bool

    @property
    def is_intact(self) -> bool:
        """Whether nobody has written to its tensors since."""
        return self.versions == tuple(_versions(self.taken, self.result))


class SharedCalls:
    """Runs mixed models on one batch after another; a module's call is computed once for equal inputs and weights.

    Below the first layer that differs, mixes of one model have all their results in common; of a frozen module in a
    block they have the results for common inputs. Layers with LoRA run with the product of their factors added to the
    weight, except where the frozen layer's results are known. Rows of results that no output depends on are left out
    (`fedsim.analysis.mixing.read_rows`). A model must be a function of its inputs and its weights.

    Parameters
    ----------
    model
        Gives the architecture, in eval mode; it is not changed.
    parts
        The parts that each have one source.
    entries
        Gives the entries of keys from a source.
    memory
        Bytes of results that are kept at a time.
    partly_read
        Paths of row-wise modules to look at for rows that no output depends on.

    Attributes
    ----------
    never_left_out
        Those of them of which no rows have been left out so far.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[Part],
        entries: Callable[[Sequence[str], Source], Params],
        memory: float,
        partly_read: Collection[str] = (),
    ) -> None:
        self._model, self._parts, self._entries, self._memory = copy_of(model).eval(), parts, entries, memory
        self._tensors: dict[str, Tensor] = self._model.state_dict(keep_vars=True)
        self._loaded: list[Source | None] = [None] * len(parts)
        place = {id(self._tensors[key]): k for k, part in enumerate(parts) for key in part.keys}
        self._merged = MergedAdapters(self._model, memory / 4)
        self._known: dict[nn.Module, list[_Call]] = {}
        self._kept: dict[nn.Module, list[_Call]] | None = None
        self._bytes: dict[int, int] = {}
        self._partly_read = {self._model.get_submodule(path): path for path in sorted(partly_read)}
        self._read: dict[nn.Module, ReadRows] | None = None
        self._batches = self._again = 0
        self.never_left_out = set(partly_read)
        self._model.requires_grad_(False)
        for module in self._model.modules():
            if module is not self._model and not isinstance(module, nn.Identity | nn.Dropout):
                held = {place.get(id(value)) for value in module.state_dict(keep_vars=True).values()} - {None}
                own = sorted(k for k in held if k is not None)
                vars(module)["forward"] = partial(self._call, module, module.forward, own)

    def outputs(self, recipes: Sequence[Recipe], inputs: Tensor) -> Iterator[tuple[Recipe, Any]]:
        """Yield each recipe with the model's outputs for a batch, those first of which most mixes are made."""
        self._known, self._read = {}, None
        with torch.no_grad():
            for group in _by_base(recipes):
                for number, recipe in enumerate(group):
                    self._load_(recipe)
                    self._kept, self._bytes = ({}, {}) if number == 0 else (None, {})
                    outputs = self._run(inputs)
                    self._known = self._known if self._kept is None else self._kept
                    yield recipe, outputs
        self._known, self._kept = {}, None

    def _run(self, inputs: Tensor) -> Any:
        if self._read is None:
            self._batches += 1
            outputs, self._read = run_and_find(self._model, inputs, self._partly_read)
            return outputs
        outputs = self._model(inputs)
        if not self._read or not outputs.isnan().any():
            return outputs
        # Rows were read that the batch's first model does not read: from here on, none of this batch are left out.
        self._read, self._kept, self._bytes = {}, None if self._kept is None else {}, {}
        self._again += 1
        if 2 * self._again > self._batches:
            self._partly_read = {}
        return self._model(inputs)

    def _load_(self, recipe: Recipe) -> None:
        for k, (part, source) in enumerate(zip(self._parts, recipe, strict=True)):
            if self._loaded[k] != source:
                for key, value in self._entries(part.keys, source).items():
                    self._tensors[key].data = value
                self._loaded[k] = source

    def _call(
        self, module: nn.Module, forward: Callable[..., Any], own: Sequence[int], *args: Any, **kwargs: Any
    ) -> Any:
        sources = tuple(self._loaded[k] for k in own)
        kept = None if self._kept is None else self._kept.setdefault(module, [])
        for known in (*(kept or ()), *self._known.get(module, ())):
            if known.sources == sources and self._is_given(known, (args, kwargs)):
                call = known
                break
        else:
            before = tuple(_versions((args, kwargs), None))
            result = self._outputs(module, forward, sources, args, kwargs)
            if before != tuple(_versions((args, kwargs), None)):  # it writes to what it takes
                return result
            versions = tuple(_versions((args, kwargs), result))
            call = _Call(sources, (args, kwargs), result, versions, has_all_rows=not self._read)
        if kept is not None and self._has_room(call):
            kept.append(call)
        return call.result

    def _outputs(
        self, module: Any, forward: Callable[..., Any], sources: Sequence[Source | None], args: Any, kwargs: Any
    ) -> Any:
        if self._kept is None and self._merged.has(module) and not kwargs:
            below = self._known.get(module.base_layer, ())
            if not any(self._is_given(known, (args, {})) for known in below):
                merged = self._of_read(module, module.base_layer, partial(self._merged.outputs, module, sources), args)
                return forward(*args) if merged is None else merged
        return forward(*args, **kwargs) if kwargs else self._of_read(module, module, forward, args)

    def _of_read(self, module: nn.Module, read: nn.Module, function: Callable[..., Any], args: Any) -> Any:
        """Return what a module gives, of the rows of which the same are read as of another, a part of it or itself."""
        rows = (self._read or {}).get(read)
        if rows is None or not rows.are_of(args):
            return function(*args)
        self.never_left_out -= {self._partly_read.get(each) for each in module.modules()}
        return rows.run(function, *args)

    def _is_given(self, call: _Call, taken: Any) -> bool:
        """Return whether a call has equal arguments, and nothing is left out of it that is needed now."""
        return call.is_intact and (call.has_all_rows or bool(self._read)) and _are_equal(call.taken, taken)

    def _has_room(self, call: _Call) -> bool:
        for each in tensors_in((call.taken, call.result)):
            self._bytes.setdefault(each.untyped_storage().data_ptr(), each.untyped_storage().nbytes())
        return sum(self._bytes.values()) <= self._memory


def _by_base(recipes: Sequence[Recipe]) -> list[list[Recipe]]:
    """Return recipes in groups that have the most parts from the same state, that with the most of them first."""
    groups: dict[Source, list[tuple[int, Recipe]]] = {}
    for recipe in recipes:
        base, count = Counter(recipe).most_common(1)[0]
        groups.setdefault(base, []).append((count, recipe))
    return [[recipe for _, recipe in sorted(group, key=lambda each: -each[0])] for group in groups.values()]


def _versions(*values: Any) -> Iterator[int]:
    for each in tensors_in(values):
        yield each._version


def _are_equal(one: Any, other: Any) -> bool:
    """Return whether arguments are known to be equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one is other:
            return True
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_are_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and not isinstance(one, torch.Size):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    return isinstance(one, FIXED) and bool(one == other)
