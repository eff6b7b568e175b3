"""The names of the origins of clients, by hand."""

import numpy as np
import pytest
import torch

from fedsim.config.tables import PartitionConfig
from fedsim.data import Dataset, Examples
from fedsim.data.heterogeneity import Heterogeneity
from fedsim.federation.origins import origins_of
from partitions import LabelCounts, Partition

SITES, REGIONS = np.repeat(np.arange(6), 2), np.repeat([0, 1], 6)
EXAMPLES = Examples(torch.zeros(12, 1), torch.arange(12) % 2)
ORIGINS = {"region": ("north", "south"), "site": tuple("abcdef")}
DATA = Dataset("mine", EXAMPLES, EXAMPLES, ("0", "1"), ids={"region": REGIONS, "site": SITES}, origins=ORIGINS)


@pytest.mark.parametrize(
    ("scheme", "options", "owners", "expected"),
    [
        ("natural", {"column": "site"}, SITES, tuple("abcdef")),
        ("natural", {"column": "region"}, REGIONS, ("north", "south")),
        ("domain", {"column": "region"}, SITES, ("north",) * 3 + ("south",) * 3),
        # As in a saved split: the column that tells most of the clients apart.
        ("iid", {}, SITES, tuple("abcdef")),
        ("iid", {}, REGIONS, ("north", "south")),
        ("iid", {}, np.arange(12) % 2, ()),
        ("iid", {}, np.zeros(12, dtype=int), ()),
        # Several in one client, as Flower's GroupedNaturalIdPartitioner groups them.
        ("domain", {"column": "site"}, SITES // 2, ("a, b", "c, d", "e, f")),
        ("domain", {"column": "site"}, SITES // 5, ("a, b, c and 2 more", "f")),
        ("domain", {"column": "unknown"}, SITES, ()),
    ],
)
def test_each_client_has_the_names_of_its_origins(
    scheme: str, options: dict[str, str], owners: np.ndarray, expected: tuple[str, ...]
) -> None:
    clients = Partition.from_owners(owners, int(owners.max()) + 1)
    assert origins_of(clients, DATA, PartitionConfig(scheme=scheme, **options)) == expected


def test_names_that_are_the_numbers_of_clients_are_left_out() -> None:
    settings, clients = PartitionConfig(scheme="natural"), Partition.from_owners(SITES, 6)
    for names, expected in ((tuple("012345"), ()), (tuple("123456"), tuple("123456"))):
        data = Dataset("mine", EXAMPLES, EXAMPLES, ("0", "1"), ids={"site": SITES}, origins={"site": names})
        assert origins_of(clients, data, settings) == expected


def test_long_names_are_shortened_and_control_characters_escaped_in_the_lines_of_clients() -> None:
    counts = LabelCounts(np.array([0, 1, 2]), np.array([0, 1]), np.array([3, 14]), 2)
    plain = list(Heterogeneity(np.array([3, 14]), counts, ("a", "b")).table())
    assert plain == ["client 0:  3 examples |  3  0", "client 1: 14 examples |  0 14"]
    named = Heterogeneity(np.array([3, 14]), counts, ("a", "b"), ("St.\x1b[2J", "x" * 30 + "y" * 30)).table()
    assert list(named) == [
        "client 0 (St.\\x1b[2J):                3 examples |  3  0",
        "client 1 (xxxxxxxxxxxxx ... yyyyyy): 14 examples |  0 14",
    ]
