"""Adapters: small layers that are trained on top of a frozen base, by the library peft."""

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.lazy import Place
from fedsim.models.adapter import Adapter
from fedsim.models.held import hold_, release_
from fedsim.models.layers import Layers
from fedsim.models.usage import usage_of

NAME = "default"  # peft's name of the only adapter, which is part of the keys
RANKS = "fedsim_ranks"  # a layer's attribute with the clients' ranks
LISTED = 5
# The path of a layer with an adapter, and what peft calls the parts that it adds.
ADDED = re.compile(r"(.+?)\.(?:lora_[A-Za-z_]+|ia3_l|vera_lambda_[bd])(?:\..+)?")


def adapt_(model: nn.Module, adapter: Adapter, inputs: Tensor) -> None:
    """Freeze a model and add adapters to its linear layers; their weights come from torch's global random state.

    The second factor of an adapter is 0 at first, so that the model gives what it gave without it. With the head, the
    layers train whole for which the file of a pretrained model has no weights, as peft trains the whole classifier.

    Parameters
    ----------
    inputs
        A few inputs of the model, normalised, shape [n, ...].

    Raises
    ------
    ValueError
        If peft is not installed, the expression names no linear layer or one that cannot have an adapter, or the rank
        is greater than a layer's size.
    """
    if find_spec("peft") is None:
        raise ValueError("an adapter needs the library peft; pip install 'fedsim-layerwise[adapters]'")
    layers = Layers.of(model, inputs)
    trains = {key for key, value in model.named_parameters() if value.requires_grad}
    whole = {*layers.group("head"), *_drawn(model, layers)} if adapter.head else set()
    paths = _targets(model, layers, adapter, whole)
    _inject_(model, adapter, paths)
    kept = {key for name in whole for key in layers[name].parameters} & trains
    for key, value in model.named_parameters():
        if key in kept:
            value.requires_grad_(True)
    _check_used(model, paths, inputs)


def adapted_paths(model: nn.Module) -> list[str]:
    """Return the paths of the modules with an adapter, in the order of registration."""
    return [path for path, module in model.named_modules() if is_adapted(module)]


@dataclass(frozen=True)
class Factors:
    """The two factors of an adapted layer, whose scaled product is added to its weight.

    Parameters
    ----------
    path
        Path of the layer.
    first, second
        State-dict keys of A, shape [rank, inputs], and of B, shape [outputs, rank].
    scaling
        Factor of the product B A.
    base
        State-dict key of the weight.
    transposed
        Whether the weight has the shape [inputs, outputs], as GPT-2 stores it.
    ranks
        Ranks of the clients, dealt in turn; empty if all have the same.
    """

    path: str
    first: str
    second: str
    scaling: float
    base: str
    transposed: bool
    ranks: tuple[int, ...] = ()

    def rank_of(self, client: int) -> int | None:
        """Return a client's rank, or None if all have the same."""
        return self.ranks[client % len(self.ranks)] if self.ranks else None

    def bytes_of(self, client: int, whole: int) -> int:
        """Return the bytes of a client's own rows of a factor, of which the largest rank has that many."""
        return whole if (rank := self.rank_of(client)) is None else whole * rank // max(self.ranks)

    def ratio_of(self, client: int) -> float:
        """Return how many times the largest rank is a client's: its product counts that many times more."""
        return max(self.ranks) / self.ranks[client % len(self.ranks)] if self.ranks else 1.0

    def merged(self, weight: Tensor, product: Tensor) -> Tensor:
        """Return a weight with a product of factors, in float64, added to it."""
        return (weight.double() + self.scaling * (product.T if self.transposed else product)).to(weight.dtype)

    def product(self, added: Tensor) -> Tensor:
        """Return the product of factors that adds this to the weight."""
        return (added.T if self.transposed else added) / self.scaling


def factors_of(model: nn.Module) -> tuple[Factors, ...]:
    """Return the factors of all layers with LoRA, in the order of registration."""
    found = []
    for path in adapted_paths(model):
        module: Any = model.get_submodule(path)
        for name in getattr(module, "lora_A", ()):
            first, second = (f"{path}.{factor}.{name}.weight" for factor in ("lora_A", "lora_B"))
            transposed = bool(getattr(module, "fan_in_fan_out", False))
            base = f"{path}.base_layer.weight"
            scaling, ranks = module.scaling.get(name), vars(module).get(RANKS, ())
            found.append(Factors(path, first, second, float(scaling), base, transposed, ranks))
    return tuple(found)


def adapted_layers(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return, by the path of each layer with an adapter, the names of the layers that were added to it."""
    added: dict[str, list[str]] = {}
    for name in names:
        if found := ADDED.fullmatch(name):
            added.setdefault(found[1], []).append(name)
    return {path: tuple(members) for path, members in added.items()}


def is_adapted(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer with peft's adapter around it."""
    return isinstance(getattr(module, "base_layer", None), nn.Module) and hasattr(module, "get_base_layer")


def hold_bases_(model: nn.Module) -> None:
    """Let the weights below the factors of LoRA be held: the server changes and sends them, and nothing trains them.

    Raises
    ------
    ValueError
        If a layer's adapter does more than add the product of factors, so that no change of its weight is worth one.
    """
    for path in dict.fromkeys(each.path for each in factors_of(model)):
        module: Any = model.get_submodule(path)
        if getattr(module, "lora_magnitude_vector", None):
            raise ValueError("kind = 'dora' does more than add a product to the weight; use kind = 'lora'")
        hold_(module.get_base_layer())


def merge_(model: nn.Module) -> None:
    """Add all adapters to the weights of their layers, which replace them: the model has the keys of its base again."""
    for path in adapted_paths(model):
        module: Any = model.get_submodule(path)
        module.merge(safe_merge=True)
        release_(module.get_base_layer())
        model.set_submodule(path, module.get_base_layer())


def _targets(model: nn.Module, layers: Layers, adapter: Adapter, whole: set[str]) -> list[str]:
    """Return the paths of the modules that get an adapter."""
    where = f"targets = {adapter.targets!r}"
    group = layers.group(adapter.targets)
    tied = _tied(model, layers)
    found = [name for name in group if _is_linear(model, name)]
    if bad := [name for name in found if name in tied]:
        raise ValueError(
            f"{where} names {bad[0]}, which shares its weight with {tied[bad[0]]}, so that an adapter would change one "
            f"of them only; leave it out, as by '{adapter.targets} - {bad[0]}'"
        )
    if not found:
        linear = [name for name in layers.names if _is_linear(model, name) and name not in tied]
        ties = [f"{name} (with {tied[name]})" for name in group if name in tied]
        shares = f"; {ties[0]} ties its weight, which no adapter can change alone" if ties else ""
        raise ValueError(f"{where} names no linear layer{shares}; linear layers are: {', '.join(linear) or 'none'}")
    paths = [name for name in found if name not in whole]
    if not paths:
        only = (
            "the head, which trains" if set(found) <= set(layers.head) else f"{', '.join(found[:LISTED])}, which train"
        )
        raise ValueError(f"{where} names only {only} whole; add other layers, or set head = false")
    for name in paths if adapter.kind in ("lora", "dora") else ():
        if adapter.rank > (least := _smaller_side(model, name)):
            given = f"ranks has {adapter.rank}, which" if adapter.ranks else f"rank = {adapter.rank}"
            raise ValueError(
                f"{given} is greater than the size of {name}, {least}; use a smaller rank, or other targets"
            )
    return paths


def _drawn(model: nn.Module, layers: Layers) -> set[str]:
    """Return the layers for which the file of a pretrained model has no weights."""
    return {name for key in vars(model).get("drawn", ()) if (name := layers.find(key))}


def _smaller_side(model: nn.Module, path: str) -> int:
    weight = model.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return min(weight.shape)


def _is_linear(model: nn.Module, path: str) -> bool:
    """Tell whether a module is a plain linear layer, or GPT-2's, which stores the weight transposed."""
    try:
        module = model.get_submodule(path)
    except AttributeError:  # a parameter of the model itself
        return False
    # Subclasses, such as the output of torch's attention, are often used without being called.
    return (type(module) is nn.Linear or is_transposed(module)) and not hasattr(module, "parametrizations")


def is_transposed(module: nn.Module) -> bool:
    """Tell whether a module is transformers' Conv1D, a linear layer whose weight has the shape [inputs, outputs]."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _tied(model: nn.Module, layers: Layers) -> dict[str, str]:
    """Return the layers whose weight is used elsewhere too, each with the module that does."""
    tied: dict[str, str] = {}
    for alias, key in layers.aliases.items():
        owner, first = alias.rpartition(".")[0], key.rpartition(".")[0]
        tied |= {layers.of_key(key): owner, owner: first}
    paths: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if (first := paths.setdefault(id(module), path)) != path and any(True for _ in module.parameters(False)):
            tied |= {first: path}
    return tied


def _inject_(model: nn.Module, adapter: Adapter, paths: list[str]) -> None:
    with warnings.catch_warnings():
        # A model of both kinds of linear layers, and factors that follow from a seed: peft warns of what is meant.
        warnings.filterwarnings("ignore", "fan_in_fan_out|Specified to not save vera_A")
        config = _config(adapter, paths, is_transposed=is_transposed(model.get_submodule(paths[0])))
        if adapter.kind == "vera":  # whose layers share factors
            Place("peft", "VeraModel").load()(model, {NAME: config}, NAME)
        else:
            Place("peft", "inject_adapter_in_model").load()(config, model, adapter_name=NAME)
    vars(model).pop("peft_config", None)


def _config(adapter: Adapter, paths: list[str], *, is_transposed: bool) -> Any:
    """Return the library's configuration of an adapter."""
    options: dict[str, Any] = {"target_modules": "|".join(map(re.escape, paths))}
    if adapter.kind == "ia3":
        return Place("peft", "IA3Config").load()(feedforward_modules=[], **options)
    options["fan_in_fan_out"] = is_transposed
    if adapter.kind == "vera":
        # The fixed factors follow from a seed, so that no file needs them.
        seed = int(torch.randint(2**31, ()))
        options |= {"r": adapter.rank, "vera_dropout": adapter.dropout, "projection_prng_key": seed}
        return Place("peft", "VeraConfig").load()(save_projection=False, **options)
    options |= {"r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout}
    return Place("peft", "LoraConfig").load()(use_dora=adapter.kind == "dora", **options)


def _check_used(model: nn.Module, paths: list[str], inputs: Tensor) -> None:
    """Check that the model calls each adapter: a model that reads the weight of a layer would bypass it."""
    try:
        used = set(usage_of(model, inputs[:2]).keys)
    except Exception:  # other checks report what the model raises
        return
    unused = [path for path in paths if used.isdisjoint(_own_keys(model, path))]
    if unused:
        raise ValueError(
            f"targets: the model uses the weight of {', '.join(unused[:LISTED])} without calling the layer, so that an "
            "adapter would have no effect; leave it out"
        )


def _own_keys(model: nn.Module, path: str) -> Iterator[str]:
    for key in model.get_submodule(path).state_dict():
        if not key.startswith("base_layer."):
            yield f"{path}.{key}"
