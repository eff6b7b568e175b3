"""The permutation that aligns units of two models that respond alike to the same inputs."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fedsim.alignment.matching.assignment import best_orders
from fedsim.alignment.symmetries.permutations import Permutation, Segment
from fedsim.alignment.symmetries.spec import Derivation
from fedsim.models.params import Params, fit
from fedsim.training.evaluation import examples_at_a_time

Kind = Literal["pearson", "uncentred"]
# Added to the product of two standard deviations, as in the code of REPAIR: units that never respond match nothing.
EPSILON = 1e-4


# An operation, and the one that takes its result: itself where the result counts as it is returned.
Place = tuple[str, str]


@dataclass(frozen=True)
class View:
    """Part of the result of an operation, as an operation takes it: the values of the units of an order."""

    place: Place
    dimension: int
    start: int
    segment: Segment

    def rows(self, value: Tensor) -> Tensor:
        """Return the values of each unit, [rows, units] in float64; examples and positions are rows."""
        part = value.narrow(self.dimension, self.start, self.segment.size).movedim(self.dimension, -1)
        return part.unflatten(-1, (-1, self.segment.repeat)).mT.flatten(0, -2).double()


class Products:
    """Sums of the values of the units of two models, and of their products."""

    def __init__(self) -> None:
        self._rows, self._sums = 0, [torch.zeros(())] * 5

    def add_(self, a: Tensor, b: Tensor) -> None:
        """Add further rows, [rows, units]."""
        new = (a.sum(0), b.sum(0), a.square().sum(0), b.square().sum(0), a.T @ b)
        self._rows += len(a)
        self._sums = [old.to(value) + value for old, value in zip(self._sums, new, strict=True)]

    def uncentred(self) -> Tensor:
        """Return the mean product of each unit of one model with each unit of the other, [units, units]."""
        return self._sums[-1] / self._rows

    def pearson(self) -> Tensor:
        """Return the correlation of each unit of one model with each unit of the other, [units, units]."""
        a, b, aa, bb, ab = (each / self._rows for each in self._sums)
        stds = [(squares - mean**2).clamp_min(0).sqrt() for squares, mean in ((aa, a), (bb, b))]
        return (ab - torch.outer(a, b)) / (torch.outer(*stds) + EPSILON)


def match_activations(
    derivation: Derivation, reference: Params, params: Params, inputs: Tensor, *, kind: Kind = "pearson"
) -> Permutation:
    """Return the permutation of a model whose units are as similar as possible to a reference's on the same inputs.

    Similarity is measured where a linear layer, a convolution or another module with weights (except normalisations)
    takes the units' values, that is, after the non-linearity; positions of a convolution count like examples. If units
    are taken several times, as those of a residual stream, the similarities are added. Units that no such module takes
    are compared wherever their values are visible, as queries and keys that a linear layer returns; those that are
    never visible, inside modules that hold several weights, stay in place, or move with their blocks.

    Parameters
    ----------
    derivation
        Symmetries of the model.
    reference, params
        All entries of two models, which are run in eval mode.
    inputs
        Inputs as the model takes them, shape [n, ...]. They are used once, in batches; all sums are in float64.
    kind
        Similarity of two units: ``pearson``, their correlation, as in REPAIR, or ``uncentred``, their mean product, as
        in Git Re-Basin.

    Raises
    ------
    ValueError
        If there are no inputs, the kind is unknown, an entry does not match the model, or a value is not finite.

    References
    ----------
    Ainsworth et al. 2023, Git Re-Basin, arXiv 2209.04836, section 3.1.

    Jordan et al. 2023, REPAIR: REnormalizing Permuted Activations for Interpolation Repair, arXiv 2211.08403.
    """
    if not len(inputs):
        raise ValueError("there are no inputs; activations need at least 1, preferably some hundreds")
    if kind not in get_args(Kind):
        raise ValueError(f"kind = {kind!r} must be one of {', '.join(get_args(Kind))}")
    states = fit(derivation.model, reference, "the reference"), fit(derivation.model, params, "the other model")
    products = _products(derivation, *states, inputs)
    permutation: Permutation = {}
    for symmetry in derivation.spec.symmetries:
        gains: dict[str, NDArray[np.float64]] = {}
        for order, width in symmetry.widths.items():
            units = symmetry.blocks * width
            similar = [getattr(each, kind)().cpu().numpy() for each in products.get(order, [])]
            gains[order] = sum(similar, start=np.zeros((units, units)))
        permutation |= best_orders(symmetry, gains)
    return permutation


def _products(derivation: Derivation, reference: Params, params: Params, inputs: Tensor) -> dict[str, list[Products]]:
    """Return the products of two models' units, by order and for each place at which their values are visible."""
    views = _views(derivation)
    found: dict[str, dict[View, Products]] = {order: {} for order in views}
    places = {view.place for each in views.values() for view in each}
    for batch in inputs.split(examples_at_a_time(inputs.device)):
        own, others = (_values(derivation, each, batch, places) for each in (reference, params))
        for order, each in views.items():
            for view in each:
                if view.place in own:
                    rows = view.rows(own[view.place]), view.rows(others[view.place])
                    found[order].setdefault(view, Products()).add_(*rows)
    return {order: list(each.values()) for order, each in found.items()}


def _values(derivation: Derivation, params: Params, inputs: Tensor, places: Collection[Place]) -> dict[Place, Tensor]:
    """Return the values at some places; of places with the same values of one operation, only at the first."""
    nodes, results = {node for node, _ in places}, dict[str, Tensor]()
    found: dict[Place, Tensor] = {}
    seen = set[tuple[str, int]]()

    def visit(node: fx.Node, value: Any) -> None:
        if node.name in nodes:
            results[node.name] = value
        for taken in (node, *node.all_input_nodes):
            if (place := (taken.name, node.name)) in places:
                # An operation in between may have changed the values in place, and later ones may.
                version = taken.name, results[taken.name]._version
                if version not in seen:
                    seen.add(version)
                    found[place] = results[taken.name].clone()

    derivation.run(params, inputs, visit)
    return found


def _views(derivation: Derivation) -> dict[str, list[View]]:
    """Return where the values of the units of each order are compared."""
    # Weights of functions are no responses, and their other axes may not be in the same order yet.
    nodes = [node for node in derivation.graph.nodes if node.op != "get_attr"]
    taken = [(node, taker) for node in nodes for taker in node.users if _weighs(taker, derivation)]
    inside, anywhere = (
        [view for place in places for view in _views_of(*place, derivation)]
        for places in (taken, [(node, node) for node in nodes])
    )
    views: dict[str, list[View]] = {}
    for order in derivation.spec.sizes:
        views[order] = [view for view in inside if view.segment.order == order] or [
            view for view in anywhere if view.segment.order == order
        ]
    return views


def _weighs(node: fx.Node, derivation: Derivation) -> bool:
    """Whether an operation is a module that multiplies what it takes by weights."""
    if node.op != "call_module":
        return False
    return any(weight.ndim > 1 for weight in derivation.model.get_submodule(str(node.target)).parameters())


def _views_of(node: fx.Node, taker: fx.Node, derivation: Derivation) -> Iterator[View]:
    for dimension, axis in enumerate(derivation.values.get(node.name, ())):
        start = 0
        for segment in axis:
            if segment.order is not None:
                yield View((node.name, taker.name), dimension, start, segment)
            start += segment.size
