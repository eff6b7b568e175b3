from itertools import permutations, product

import numpy as np
import pytest
import torch

from fedsim.alignment.matching.assignment import best_orders
from fedsim.alignment.symmetries.permutations import Symmetry


def total(gains: dict[str, np.ndarray], orders: dict[str, torch.Tensor]) -> float:
    return sum(float(gains[name][np.arange(len(order)), order.numpy()].sum()) for name, order in orders.items())


def drawn(symmetry: Symmetry, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = {name: symmetry.blocks * width for name, width in symmetry.widths.items()}
    return {name: rng.standard_normal((size, size)) for name, size in sizes.items()}


def every_order(symmetry: Symmetry):
    """Yield all choices of orders that a symmetry allows."""
    for blocks in permutations(range(symmetry.blocks)):
        choices = [
            [
                torch.tensor(
                    [block * width + unit for block, inner in zip(blocks, inners, strict=True) for unit in inner]
                )
                for inners in product(permutations(range(width)), repeat=symmetry.blocks)
            ]
            for width in symmetry.widths.values()
        ]
        for orders in product(*choices):
            yield dict(zip(symmetry.widths, orders, strict=True))


@pytest.mark.parametrize(
    "symmetry",
    [
        Symmetry(5, {"units": 1}),
        Symmetry(1, {"units": 5}),
        Symmetry(3, {"units": 2}),
        Symmetry(2, {"keys": 3, "values": 2}),
        Symmetry(3, {"keys": 1, "values": 2}),
        Symmetry(1, {"keys": 2, "values": 3}),
    ],
    ids=str,
)
def test_no_orders_that_a_symmetry_allows_gain_more(symmetry: Symmetry) -> None:
    prices = np.zeros(symmetry.blocks)
    for seed in range(5):
        gains = drawn(symmetry, seed)
        allowed = list(every_order(symmetry))
        for found in (best_orders(symmetry, gains), best_orders(symmetry, gains, prices)):
            assert any(all(torch.equal(orders[name], found[name]) for name in found) for orders in allowed)
            assert total(gains, found) == pytest.approx(max(total(gains, orders) for orders in allowed), abs=1e-12)


def test_prices_change_no_assignment_and_become_those_at_which_each_place_prefers_its_own() -> None:
    symmetry = Symmetry(30, {"units": 1})
    gains = drawn(symmetry, 0)
    places, own, prices = np.arange(30), best_orders(symmetry, gains)["units"].numpy(), drawn(symmetry, 1)["units"][0]

    def content() -> bool:
        net = gains["units"] - prices
        return bool((net[places, own] > net.max(1) - 1e-12).all())

    assert not content()
    for _ in range(30):
        assert best_orders(symmetry, gains, prices)["units"].tolist() == own.tolist()
    assert content()
    assert prices.min() == 0


def test_units_stay_where_all_gains_are_equal() -> None:
    for symmetry in (Symmetry(6, {"units": 1}), Symmetry(3, {"keys": 2, "values": 4})):
        gains = {name: np.zeros_like(gain) for name, gain in drawn(symmetry, 0).items()}
        for order in best_orders(symmetry, gains).values():
            assert torch.equal(order, torch.arange(len(order)))


def test_a_gain_that_is_not_finite_is_refused() -> None:
    gains = drawn(Symmetry(3, {"units": 1}), 0)
    gains["units"][1, 2] = np.nan
    with pytest.raises(ValueError, match="a gain of order 'units' is not finite"):
        best_orders(Symmetry(3, {"units": 1}), gains)
