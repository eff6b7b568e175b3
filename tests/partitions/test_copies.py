from collections.abc import Callable

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.federation.federation import federation_of
from partitions import PARTITIONS, Split, hold_out
from partitions.partition import Partition
from tests.partitions.cases import CLIENTS, LABELS, N


def copies(seed: int = 0, clients: int = CLIENTS, validation: float = 0.1, test: float = 0.2) -> Split:
    rng = np.random.default_rng(seed)
    split = PARTITIONS["copies"](LABELS, clients, rng, validation=validation, test=test)
    assert isinstance(split, Split)
    return split


def test_all_clients_train_validate_and_test_on_the_same_examples() -> None:
    split = copies()
    for part in split.parts:
        assert len(part) == CLIENTS
        assert all(np.array_equal(client, part[0]) for client in part)
    assert len({len(part[0]) for part in split.parts}) == 3  # parts of one size could be swapped unseen


def test_the_first_client_is_one_that_holds_everything_alone() -> None:
    alone = Partition(np.arange(N), np.array([0, N]))
    expected = hold_out(alone, np.random.default_rng(3), validation=0.1, test=0.2)
    for part, one in zip(copies(3).parts, expected.parts, strict=True):
        assert np.array_equal(part[CLIENTS - 1], one[0])


def test_in_a_run_it_takes_the_shares_and_the_examples_that_the_config_says(tiny: Callable[..., Config]) -> None:
    partition = {"scheme": "copies", "validation": 0.0, "test": 0.25}
    data = federation_of(tiny(partition=partition)).data
    assert [len(part[3]) for part in data.split.parts] == [150, 0, 50]
    held = [set(each.split.whole.indices.tolist()) for each in (data, federation_of(tiny()).data)]
    assert held[0] == held[1]  # the sample of the training set that the seed draws
    (first, targets), (last, _) = data.client(0).train, data.client(3).train
    assert first.equal(last)
    assert len(targets) == 150
    with pytest.raises(ConfigError, match="test_skew = 'uniform' does not go with scheme = 'copies'"):
        federation_of(tiny(partition=partition | {"test_skew": "uniform"}))
