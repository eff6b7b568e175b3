"""The rotations that transformers allow: within attention heads, and of the residual stream between norms."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from fedsim.alignment.symmetries import transformers
from fedsim.alignment.symmetries.checks import check_spec
from fedsim.alignment.symmetries.factors import Factors, Rows, balance_factors, have_balance
from fedsim.alignment.symmetries.norms import Norm, absorb_norms
from fedsim.alignment.symmetries.permutations import Segment, Spec, Symmetry, only
from fedsim.alignment.symmetries.rotations import Rotation
from fedsim.alignment.symmetries.spec import Derivation, derive
from fedsim.models.copies import copy_of
from fedsim.models.params import Params, first_keys, state_of

# Orders of the units within heads, by their role.
WITHIN_HEADS = re.compile(r":(qk|vo)\d*$")
NORMS = (nn.LayerNorm, nn.RMSNorm)
# Operations that leave the last dimension of what they return as it was.
PASSING = ("getitem", "select", "narrow", "contiguous", "clone", "to", "mean", "unsqueeze", "squeeze")
ROUNDING = 1e-8
# Norms of Hugging Face compute in float32 whatever their inputs are.
ROUNDING_OF_LIBRARY = 1e-5
# A draw may happen to leave what it must move, as a sign is 1 in half of all draws.
DRAWS = 3


def rotation_spec(model: nn.Module, inputs: Tensor, *, stream: bool = True, balanced: bool = False) -> Spec:
    """Return the symmetries of a transformer, including rotations within its heads and of its residual stream.

    Queries and keys of a head can be rotated together, and so can values and what the output projection makes of them;
    heads and hidden units change places as in `permutation_spec`. The residual stream can be rotated if each norm on it
    is read by linear layers alone, which can take its scale: not where norms come after the addition, nor where the
    output embedding is also the input's. Layer normalisation only commutes with rotations that do not change the vector
    of ones. Where the stream cannot be rotated, its units change places.

    Candidates come from the model's graph, or for BERT, GPT-2, Llama and ViT of Hugging Face, which cannot be traced,
    from the names of their weights; each is kept if random draws of it leave the outputs of random weights, so that
    units that a frozen weight or one that no rule knows uses stay in place.

    Parameters
    ----------
    model
        Model to analyse; it is not changed.
    inputs
        Two or more inputs, on the model's device.
    stream
        Whether the residual stream is rotated too. Norms in ``norms`` of the result must then be absorbed by
        `fedsim.alignment.symmetries.norms.absorb_norms` in each model before matching and permuting it.
    balanced
        Whether heads are matched up to all invertible matrices, not only rotations. Each model must then be brought
        into its `fedsim.alignment.symmetries.normal_form.normal_form` first, which also absorbs norms.

    Raises
    ------
    ValueError
        If nothing can be rotated, or balanced where that is asked for, or as from
        `fedsim.alignment.symmetries.spec.derive`.

    References
    ----------
    Theus et al. 2025, Generalized linear mode connectivity for transformers, arXiv 2506.22712; Tran et al. 2026,
    Functional equivalence in attention, arXiv 2606.17830.
    """
    if transformers.is_known(model):
        spec = transformers.heads_spec(model)
        plain = replace(spec, symmetries=tuple(Symmetry(1, {}) if s.rotations else s for s in spec.symmetries))
        norms, centred = transformers.norms_of(model, spec)
        if stream and norms and transformers.STREAM in spec.sizes:
            spec = with_stream(spec, transformers.STREAM, norms, centred=centred)
        return confirmed(model, spec, plain, inputs, ROUNDING_OF_LIBRARY, balanced=balanced)
    derivation = derive(model, inputs)
    spec = replace(derivation.spec, symmetries=tuple(map(_with_rotated_heads, derivation.spec.symmetries)))
    if stream:
        spec = _with_rotated_stream(derivation, spec)
    return confirmed(model, spec, derivation.spec, inputs, balanced=balanced)


def confirmed(
    model: nn.Module, spec: Spec, plain: Spec, inputs: Tensor, rounding: float = ROUNDING, *, balanced: bool = False
) -> Spec:
    """Return a spec with those symmetries alone that leave what random weights compute, with the model's frozen ones.

    Parameters
    ----------
    plain
        Spec without rotations, whose symmetries stand for those that turn out to be none if they pass the test
        themselves; in the same order.
    rounding
        Largest difference of outputs by rounding, relative to the largest output.
    balanced
        Whether the spec also has those factors of heads that leave what the weights compute when they are balanced.

    Raises
    ------
    ValueError
        If no rotation is left, or no factors where they are asked for.
    """
    trial = _Trial(model, spec, inputs, rounding)
    kept = list(spec.symmetries)
    if not trial.holds(kept, spec):
        kept = [trial.first(pair, plain) for pair in zip(kept, plain.symmetries, strict=True)]
    if not any(each.rotations for each in kept):
        raise ValueError(
            f"model = {type(model).__name__} has no units that can be rotated, such as those within "
            "attention heads of two or more units"
            + ("; match by permutations" if plain.symmetries and not transformers.is_known(model) else "")
        )
    if not any(_is_rotated_stream(each, spec) for each in kept):
        spec = replace(spec, axes=plain.axes, norms=())
    spec = only(spec, [each for each in kept if each.widths])
    return _with_factors(spec, trial, type(model).__name__) if balanced else spec


class _Trial:
    """A model with random weights, on which symmetries are tested; frozen tensors keep their values."""

    def __init__(self, model: nn.Module, spec: Spec, inputs: Tensor, rounding: float) -> None:
        self._spec, self._rounding, self._rng = spec, rounding, np.random.default_rng(0)
        # Frozen tensors that copies share would become float64 in all of them.
        self._model = copy_of(model, shares_frozen=False).eval().double()
        self._example = inputs[:2].double() if inputs.is_floating_point() else inputs[:2]
        self._params = _random_params(self._model, self._rng)
        self._expected = self._outputs(self._params)

    def holds(self, symmetries: Sequence[Symmetry], spec: Spec) -> bool:
        """Whether a spec's absorbed norms leave the outputs, and so do some random draws of all these symmetries."""
        absorbed, limit = absorb_norms(self._params, spec.norms), self._rounding * float(self._expected.abs().max())
        if not torch.allclose(self._outputs(absorbed), self._expected, rtol=self._rounding, atol=limit):
            return False
        tested = replace(spec, symmetries=tuple(symmetries))
        try:
            for _ in range(DRAWS):
                check_spec(self._model, absorbed, tested, self._example, self._rng, self._rounding)
        except ValueError:
            return False
        return True

    def balances(self, factors: Factors) -> bool:
        """Whether one layer's factors can be balanced, and the outputs stay when they are."""
        try:
            if not have_balance(self._params, factors):
                return False
        except ValueError:
            return False
        found = self._outputs(balance_factors(self._params, [factors]))
        return float((found - self._expected).abs().max()) <= self._rounding * float(self._expected.abs().max())

    def first(self, symmetries: Iterable[Symmetry], plain: Spec) -> Symmetry:
        """Return the first of some symmetries that holds alone, or one without units."""
        for each in symmetries:
            # Where the stream is not rotated, the scales of norms are not absorbed, and change places with its units.
            if self.holds([each], self._spec if _is_rotated_stream(each, self._spec) else plain):
                return each
        return Symmetry(1, {})

    def _outputs(self, values: Params) -> Tensor:
        with torch.no_grad():
            return functional_call(self._model, values, (self._example.clone(),))


def _with_factors(spec: Spec, trial: _Trial, name: str) -> Spec:
    """Return a spec with those factors of heads that hold in a trial of the model with some name."""
    heads = [each for each in spec.symmetries if not _is_rotated_stream(each, spec)]
    candidates = [_factors(spec, symmetry, rotation) for symmetry in heads for rotation in symmetry.rotations]
    found = [next(filter(trial.balances, each), None) for each in candidates]
    if not any(found):
        raise ValueError(
            f"model = {name} has no heads whose factors can be balanced: units that are several, linearly independent "
            "and only multiplied; match by rotations instead of invertible"
        )
    return replace(spec, factors=tuple(filter(None, found)))


def _factors(spec: Spec, symmetry: Symmetry, rotation: Rotation) -> Iterator[Factors]:
    """Yield what may be the factors that rotate together: the rows of two weights, each with its bias.

    Models whose keys have a bias compute the same with any, so that it is on the side that its name or place suggests.
    """
    rows = [each for order in rotation.copies for each in _rows(spec, order, rotation.copies[order])]
    weights, biases = ([each for each in rows if (len(spec.axes[each[1].key]) == 1) == flat] for flat in (False, True))
    sides = defaultdict[object, list[tuple[str, Rows]]](list)
    for place, (order, own) in enumerate(weights):
        sides[place if len(weights) == 2 else (order, _module(own), own.start)].append((order, own))
    if len(sides) != 2:
        return
    first, second = sides.values()
    allowed = [[i for i in (0, 1) if (first, second)[i][0][0] == order] for order, _ in biases]

    def unlikely(places: Sequence[int]) -> tuple[int, int, int]:
        modules = [_module((first, second)[i][0][1]) for i in places]
        foreign = sum(name != _module(own) for name, (_, own) in zip(modules, biases, strict=True))
        return foreign, -len(set(places)), sum(i != place for i, place in enumerate(places))

    kind: Literal["modulus", "invertible"] = "modulus" if rotation.kind == "phases" else "invertible"
    for places in sorted(product(*allowed), key=unlikely):
        one, other = (
            (*(own for _, own in side), *(own for place, (_, own) in zip(places, biases, strict=True) if place == i))
            for i, side in enumerate((first, second))
        )
        yield Factors(kind, symmetry.blocks, (one, other))


def _rows(spec: Spec, order: str, copies: int) -> Iterator[tuple[str, Rows]]:
    """Yield all that follows an order, with the order."""
    for key, dimension in spec.uses(order):
        start = 0
        for segment in spec.axes[key][dimension]:
            if segment.order == order:
                yield order, Rows(key, dimension, start, segment.size, copies)
            start += segment.size


def _module(rows: Rows) -> str:
    return rows.key.rpartition(".")[0]


def _with_rotated_heads(symmetry: Symmetry) -> Symmetry:
    if not all(WITHIN_HEADS.search(name) for name in symmetry.widths):
        return symmetry
    rotations = tuple(Rotation("orthogonal", {name: 1}) for name in symmetry.widths)
    if set(symmetry.widths.values()) == {1}:  # a single head
        return Symmetry(1, dict.fromkeys(symmetry.widths, symmetry.blocks), rotations)
    return replace(symmetry, rotations=rotations)


def _is_rotated_stream(symmetry: Symmetry, spec: Spec) -> bool:
    if not symmetry.rotations:
        return False
    read = {spec.axes[key][place][0].order for norm in spec.norms for key, place in norm.readers}
    return not read.isdisjoint(symmetry.widths)


def _with_rotated_stream(derivation: Derivation, spec: Spec) -> Spec:
    """Return a spec in which the residual stream is rotated, if there is one and its norms can be absorbed."""
    found = list(_norms(derivation))
    orders = {order for order, _, _ in found}
    if len(orders) != 1 or any(norm is None for _, _, norm in found):
        return spec
    (order,) = orders
    centred = any(isinstance(module, nn.LayerNorm) for _, module, _ in found)
    return with_stream(spec, order, [norm for _, _, norm in found if norm is not None], centred=centred)


def with_stream(spec: Spec, order: str, norms: Iterable[Norm], *, centred: bool) -> Spec:
    """Return a spec in which units of an order are rotated instead of changing places, once norms are absorbed."""
    norms = tuple(norms)
    size = spec.sizes[order]
    rotated = Symmetry(1, {order: size}, (Rotation("centred" if centred else "orthogonal", {order: 1}),))
    symmetries = tuple(rotated if order in each.widths else each for each in spec.symmetries)
    scales = {norm.weight: ((Segment(size),),) for norm in norms}  # they are 1, and stay
    return replace(spec, symmetries=symmetries, axes={**spec.axes, **scales}, norms=norms)


def _norms(derivation: Derivation) -> Iterator[tuple[str, nn.Module, Norm | None]]:
    """Yield each norm on units that can change places, with their order, and None if its scale cannot be absorbed."""
    model, modules = derivation.model, dict(derivation.model.named_modules())
    first = first_keys(model)
    for node in derivation.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, NORMS) or node.name not in derivation.values:
            continue
        *_, axis = derivation.values[node.name]
        if len(axis) != 1 or axis[0].order is None:
            continue
        weight = getattr(module, "weight", None)
        readers = None if weight is None or weight.ndim > 1 else _readers(node, modules, first)
        if readers is None:
            yield axis[0].order, module, None
            continue
        bias = getattr(module, "bias", None)
        keys = [first[f"{node.target}.{name}"] for name in ("weight", "bias")[: 1 if bias is None else 2]]
        yield axis[0].order, module, Norm(keys[0], keys[1] if keys[1:] else None, readers)


def _readers(node: fx.Node, modules: dict[str, nn.Module], first: dict[str, str]) -> tuple[tuple[str, int], ...] | None:
    """Return the weights that an operation's result is multiplied by, or None if it goes anywhere else too."""
    found = dict[tuple[str, int], None]()
    for user in node.users:
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        if isinstance(module, nn.Linear):
            found[first[f"{user.target}.weight"], 1] = None
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found[first[f"{user.target}.in_proj_weight"], 1] = None
        elif isinstance(module, nn.Dropout | nn.Identity) or (user.op != "call_module" and name in PASSING):
            further = _readers(user, modules, first)
            if further is None:
                return None
            found |= dict.fromkeys(further)
        else:
            return None
    return tuple(found)


def _random_params(model: nn.Module, rng: np.random.Generator) -> Params:
    """Return weights that no symmetry but the model's own leaves alone: not those of a new model, which may be 0."""
    params = {}
    for key, value in state_of(model).items():
        noise = torch.from_numpy(rng.standard_normal(value.shape)).to(value.device)
        if not value.is_floating_point():
            params[key] = value
        elif key.endswith("running_var"):
            params[key] = 0.5 + noise.abs()
        elif value.ndim < 2:
            params[key] = 1 + 0.3 * noise
        else:
            params[key] = noise * (2 * len(value) / value.numel()) ** 0.5
    return params
