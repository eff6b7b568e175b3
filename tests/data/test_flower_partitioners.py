"""The partitioners of Flower Datasets give each client the examples that they give it in Flower."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest

from fedsim.config import Config, choices
from fedsim.config.choices import CATALOGUES
from fedsim.data.flower_partitioners import NO_SCHEMES
from fedsim.errors import ConfigError
from fedsim.federation.data import federated_data_of

flower = pytest.importorskip("flwr_datasets.partitioner", reason="flwr-datasets is not installed")
datasets = pytest.importorskip("datasets", reason="flwr-datasets is not installed")

CLIENTS = 4
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 40))
IDS = {"writer": np.random.default_rng(1).permutation(np.repeat(np.arange(CLIENTS), [25, 35, 45, 55]))}
OPTIONS: dict[str, dict[str, Any]] = {
    "ContinuousPartitioner": {"strictness": 0.5, "seed": 42},
    "DirichletPartitioner": {"alpha": 0.5, "min_partition_size": 3, "seed": 42},
    "DistributionPartitioner": {
        "distribution_array": [[0.25] * 4] * 4,
        "num_unique_labels_per_partition": 4,
        "preassigned_num_samples_per_label": 2,
        "seed": 42,
    },
    "ExponentialPartitioner": {},
    "GroupedNaturalIdPartitioner": {"partition_by": "writer", "group_size": 1},
    "IidPartitioner": {},
    "InnerDirichletPartitioner": {"partition_sizes": [40] * 4, "alpha": 0.5, "seed": 42},
    "LinearPartitioner": {},
    "NaturalIdPartitioner": {"partition_by": "writer"},
    "PathologicalPartitioner": {"num_classes_per_partition": 2, "seed": 7},
    "ShardPartitioner": {"num_shards_per_partition": 2, "seed": 42},
    "SizePartitioner": {"partition_sizes": [10, 20, 60, 70]},
    "SquarePartitioner": {},
}


def split(name: str, run_seed: int = 0, **options: Any) -> list[list[int]]:
    catalogue = CATALOGUES["partitions"]
    choice = Config.parse(
        {"rounds": 1, "clients": CLIENTS, "partition": {"scheme": f"flwr_datasets:{name}", **options}}, "test"
    ).partition
    partition = catalogue.make(choice, LABELS, CLIENTS, np.random.default_rng(run_seed), ids=IDS)
    return [held.tolist() for held in partition]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of theirs
@pytest.mark.parametrize("name", OPTIONS)
def test_each_client_holds_what_it_holds_in_flower(name: str) -> None:
    given = {"partition_by": "label"} | OPTIONS[name]
    if "distribution_array" in given:
        given["distribution_array"] = np.array(given["distribution_array"])
    wanted = vars(flower)[name].__init__.__annotations__
    if "num_partitions" in wanted:
        given["num_partitions"] = CLIENTS
    partitioner = vars(flower)[name](**{key: value for key, value in given.items() if key in wanted})
    partitioner.dataset = datasets.Dataset.from_dict({"label": LABELS, **IDS, "position": np.arange(len(LABELS))})
    assert split(name, **OPTIONS[name]) == [partitioner.load_partition(k)["position"] for k in range(CLIENTS)]


def test_without_a_seed_the_split_follows_the_runs() -> None:
    one, again, other = (split("DirichletPartitioner", seed, alpha=0.5, min_partition_size=3) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_all_of_flowers_partitioners_are_schemes_or_refused_with_the_reason() -> None:
    assert {*OPTIONS, *NO_SCHEMES, "Partitioner"} == {*flower.__all__}
    with pytest.raises(ConfigError, match=r"SizePartitioner' with the sizes"):
        split("IdToSizeFncPartitioner")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DirichletPartitioner", {}, "'partition.alpha' is missing"),
        ("DirichletPartitioner", {"alpha": 0.5, "partition_by": "hospital"}, "columns are: writer, label"),
        ("GroupedNaturalIdPartitioner", {"partition_by": "writer", "group_size": 2}, "set clients = 2"),
        ("DirichletPartitioner", {"alpha": -1.0}, r"\[partition\] Alpha values should be"),
        ("PathologicalPartitioner", {"num_classes_per_partition": 9}, r"\[partition\] "),
        ("SizePartitioner", {"partition_sizes": [1000, 1, 1, 1]}, r"\[partition\] "),
    ],
)
def test_what_cannot_be_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        split(name, **options)
    assert "\n" not in str(error.value)


def test_a_run_splits_its_data_by_one(tiny: Callable[..., Config]) -> None:
    scheme = {"scheme": "flwr_datasets:PathologicalPartitioner", "num_classes_per_partition": 2}
    data = federated_data_of(choices.resolve(tiny(partition=scheme)))
    assert (np.array(data.heterogeneity().counts.offsets[1:]) == 2 * np.arange(1, 5)).all()


def test_numbers_have_no_classes_to_split_by(tiny: Callable[..., Config], tmp_path: Path) -> None:
    inputs, targets = np.zeros((80, 3), dtype=np.float32), np.linspace(0, 1.5, 80, dtype=np.float32)
    content = {"train_inputs": inputs, "train_targets": targets, "test_inputs": inputs, "test_targets": targets}
    np.savez(tmp_path / "numbers.npz", **content)
    data, scheme = {"name": "arrays", "path": str(tmp_path / "numbers.npz")}, "flwr_datasets:DirichletPartitioner"
    with pytest.raises(ConfigError, match=r"splits by class, and the task 'regression' has none; set partition.bins"):
        federated_data_of(choices.resolve(tiny(data=data, partition={"scheme": scheme, "alpha": 1.0})))
    by_range = tiny(data=data, partition={"scheme": scheme, "alpha": 1.0, "bins": 4})
    assert sum(federated_data_of(choices.resolve(by_range)).split.whole.sizes) == 80
    even = tiny(data=data, partition={"scheme": "flwr_datasets:IidPartitioner"})
    assert len(federated_data_of(choices.resolve(even)).split.whole.sizes) == 4
