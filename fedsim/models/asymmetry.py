"""Asymmetric networks: entries of the weights, or gates of the activations, that are fixed and equal in all models.

Fixed values are functions of a seed and a layer's name, and buffers that are in no state dict: no layer holds them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedsim import seeds
from fedsim.models.frozen import unsettle_
from fedsim.models.gates import Gate, gate_
from fedsim.models.layers import Layers
from fedsim.models.parametrised import own_class_
from fedsim.models.params import Params, first_keys

Kind = Literal["w", "sigma"]
Amount = float | Mapping[str, float]
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Asymmetry:
    """What of a model is fixed.

    Parameters
    ----------
    kind
        ``w`` fixes entries of the weights of linear and convolutional layers, ``sigma`` gates activations.
    fixed
        Fixed entries of each output's weights: their number, or, below 1, their share; by layer expression if they are
        not alike, where layers that none names stay as they are.
    kappa
        Standard deviation of the fixed entries, also by layer expression (default: 1 / sqrt(n) for n fixed entries of
        an output), or a factor for those of the gates (default: 1).
    """

    kind: Kind = "w"
    fixed: Amount = 0.125
    kappa: Amount | None = None


class FixedEntries(nn.Module):
    """A parametrisation: a weight whose entries are fixed except where ``free`` is 1.

    Parameters
    ----------
    free
        1 for trained entries and 0 for fixed ones, in the weight's shape.
    fixed
        Values of the fixed entries, and 0 elsewhere.
    """

    free: Tensor
    fixed: Tensor

    def __init__(self, free: Tensor, fixed: Tensor) -> None:
        super().__init__()
        self.register_buffer("free", free, persistent=False)
        self.register_buffer("fixed", fixed, persistent=False)

    def forward(self, trained: Tensor) -> Tensor:
        """Return the weight for the trained tensor, which is 0 at fixed entries."""
        return torch.addcmul(self.fixed, trained, self.free)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is trained of a weight: zeros, not negative ones, at fixed entries."""
        return torch.where(self.free > 0, weight, 0)


def asymmetrise_(model: nn.Module, asymmetry: Asymmetry, seed: int, inputs: Tensor) -> None:
    """Make a model asymmetric; everything that is fixed follows from ``seed``.

    Parameters
    ----------
    inputs
        A few inputs of the model, normalised, shape [n, ...].

    Raises
    ------
    ValueError
        If an expression names no linear or convolutional layer or two name one, there is none, ``fixed`` and ``kappa``
        name different layers, more entries are to be fixed than there are, or a weight is tied; or if no activation of
        the model is a module, or one is a function. The model is not changed then.

    Notes
    -----
    ``w`` is W = M * V + (1 - M) * F with masks M, fixed values F ~ N(0, kappa^2), and trained values V that are 0 at
    fixed entries, so that no optimiser, average or path changes them. Rows of the masks are drawn independently, as in
    the authors' code; the paper wants them distinct. The paper's kappa, 0.25 to 3, is for models with normalisations;
    the default keeps activations at the size of the inputs in models without.

    References
    ----------
    Lim et al. 2024, The empirical impact of neural parameter symmetries, or lack thereof, arXiv 2405.20231.
    """
    if asymmetry.kind == "sigma":
        assert not isinstance(asymmetry.kappa, Mapping)
        gate_(model, asymmetry.kappa or 1.0, seed, inputs)
        return
    by_layer = isinstance(asymmetry.fixed, Mapping) or isinstance(asymmetry.kappa, Mapping)
    layers = Layers.of(model, inputs if by_layer else None)
    weighted = {path: module for path, module in model.named_modules() if _is_weighted(module)}
    amounts = _by_layer("fixed", asymmetry.fixed, layers, list(weighted))
    sizes = {} if asymmetry.kappa is None else _by_layer("kappa", asymmetry.kappa, layers, list(weighted))
    _check_untied(model, list(amounts))
    if isinstance(asymmetry.kappa, Mapping):
        _check_same(amounts, sizes)
    counts = {path: _count(weighted[path], path, amount) for path, amount in amounts.items()}
    for path, count in counts.items():
        _fix_(weighted[path], path, count, sizes.get(path), seed)


def fixed_entries(model: nn.Module) -> dict[str, FixedEntries]:
    """Return what is fixed of the weights of an asymmetric model, by the state-dict key of what is trained of each."""
    return {
        f"{path}.parametrizations.weight.original".lstrip("."): own
        for path, module in model.named_modules()
        if (own := _own(module)) is not None
    }


def is_asymmetric(model: nn.Module) -> bool:
    """Whether a model has fixed entries or gates."""
    return any(isinstance(module, FixedEntries | Gate) for module in model.modules())


def check_fixed(model: nn.Module, state: Params, name: str) -> None:
    """Check that a state is 0 where the model's entries are fixed.

    Parameters
    ----------
    name
        Name of the state in errors.

    Raises
    ------
    ValueError
        If it is not, as a state is of a model with other masks.
    """
    for key, own in fixed_entries(model).items():
        if key in state and bool((state[key].to(own.free)[own.free == 0] != 0).any()):
            raise ValueError(
                f"{name} has other fixed entries in {key!r} than the model; use the options and the seed of its run in "
                "[model.asymmetry]"
            )


def free_parts(params: Params, fixed: Mapping[str, FixedEntries]) -> Params:
    """Return parameters with the entries that train of each, as one vector where others are fixed."""
    return {key: value[_mask(fixed[key], value)] if key in fixed else value for key, value in params.items()}


def with_free_part(value: Tensor, part: Tensor, fixed: FixedEntries | None) -> Tensor:
    """Return a tensor with what `free_parts` gives of it replaced."""
    return part if fixed is None else value.masked_scatter(_mask(fixed, value), part)


def plain_weights(model: nn.Module, params: Params) -> Params:
    """Return the state of a model as `merge_fixed_` makes it, with what is fixed in the weights."""
    fixed = fixed_entries(model)
    names = {key: key.removesuffix("parametrizations.weight.original") + "weight" for key in fixed}
    plain = dict(params)
    for key, own in fixed.items():
        if key in params:  # frozen ones are in no state
            value = plain.pop(key)
            plain[names[key]] = own(value.to(own.free)).to(value)
    return plain


def merge_fixed_(model: nn.Module) -> None:
    """Make an asymmetric model of kind ``w`` one with plain weights, which computes the same."""
    if fixed_entries(model):
        unsettle_(model)  # its layers have had other keys
    for module in list(model.modules()):
        if _own(module) is not None:
            own_class_(module)
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _mask(fixed: FixedEntries, value: Tensor) -> Tensor:
    return fixed.free.to(value.device) > 0


def _own(module: nn.Module) -> FixedEntries | None:
    if not parametrize.is_parametrized(module, "weight"):
        return None
    lists: Any = module.parametrizations
    first = lists["weight"][0]
    return first if isinstance(first, FixedEntries) else None


def _is_weighted(module: nn.Module) -> bool:
    return isinstance(module, WEIGHTED) and not parametrize.is_parametrized(module) and "weight" in module._parameters


def _by_layer(name: str, amount: Amount, layers: Layers, weighted: list[str]) -> dict[str, float]:
    """Return the amount of each layer that has one."""
    if not weighted:
        raise ValueError("kind = 'w' fixes entries of linear and convolutional layers, and the model has none")
    if not isinstance(amount, Mapping):
        return dict.fromkeys(weighted, amount)
    found: dict[str, tuple[str, float]] = {}
    for expression, value in amount.items():
        chosen = [path for path in layers.group(expression) if path in weighted]
        if not chosen:
            raise ValueError(
                f"{name}: {expression!r} names no linear or convolutional layer; these are {', '.join(weighted)}"
            )
        for path in chosen:
            if path in found:
                raise ValueError(
                    f"{name}: {found[path][0]!r} and {expression!r} both name {path}; let one leave it out"
                )
            found[path] = expression, value
    return {path: value for path, (_, value) in found.items()}


def _check_untied(model: nn.Module, paths: list[str]) -> None:
    tied = {key for names in first_keys(model).items() if len(set(names)) == 2 for key in names}
    for path in paths:
        if f"{path}.weight" in tied:
            raise ValueError(
                f"the weight of {path} is tied to another, which would be fixed too; let fixed name other layers"
            )


def _check_same(amounts: Mapping[str, float], sizes: Mapping[str, float]) -> None:
    """Check that each layer with fixed entries has a kappa, and no other."""
    for path in amounts:
        if path not in sizes:
            raise ValueError(f"kappa has no value for {path}, whose entries are to be fixed; add it")
    for path in sizes:
        if path not in amounts:
            raise ValueError(
                f"kappa has a value for {path}, of which fixed names no entries; add it there or remove it"
            )


def _count(module: nn.Module, path: str, amount: float) -> int:
    """Return how many entries of each output's weights to fix."""
    entries = math.prod(module.get_parameter("weight").shape[1:])
    count = int(amount) if amount >= 1 else max(1, round(amount * entries))
    if count >= entries:
        raise ValueError(
            f"fixed = {amount:g} must be less than the {entries} weights of an output of {path}; use a share such as "
            "0.125, or a table of layers"
        )
    return count


def _fix_(module: nn.Module, path: str, count: int, kappa: float | None, seed: int) -> None:
    weight = module.get_parameter("weight").detach()
    entries = math.prod(weight.shape[1:])
    kappa = 1 / math.sqrt(count) if kappa is None else kappa
    free = torch.ones(len(weight), entries)
    free.scatter_(1, torch.stack(list(_positions(len(weight), entries, count, seed, path))), 0.0)
    drawn = torch.from_numpy(seeds.rng(seed, "asymmetry", path, "values").standard_normal((len(weight), entries)))
    fixed = torch.where(free > 0, 0, kappa * drawn).view(weight.shape).to(weight)
    parametrize.register_parametrization(module, "weight", FixedEntries(free.view(weight.shape).to(weight), fixed))


def _positions(rows: int, entries: int, count: int, seed: int, path: str) -> Iterator[Tensor]:
    """Yield the fixed positions of each row, a random subset."""
    stream = seeds.rng(seed, "asymmetry", path, "mask")
    for _ in range(rows):
        yield torch.from_numpy(stream.permutation(entries)[:count])
