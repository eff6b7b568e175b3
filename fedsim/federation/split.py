"""Which examples of the training set each client trains, validates and tests on."""

import numpy as np

from fedsim.config import Config, making
from fedsim.config.choices import CATALOGUES
from fedsim.config.tables import PartitionConfig
from fedsim.data import Dataset
from fedsim.data.dataset import stratified
from fedsim.data.flower_partitioners import LABEL, PREFIX
from fedsim.data.tasks import quantile_bins, task_of
from fedsim.errors import ConfigError
from fedsim.seeds import rng
from fedsim.shortening import a_type
from partitions import Partition, Split, hold_out
from partitions.iid import iid

# Schemes that split by the examples' classes; those of Flower Datasets do by default.
BY_CLASS = ("dirichlet", "client_dirichlet", "shards", "matrix")


def split_of(config: Config, dataset: Dataset) -> Split:
    """Split the training set over the clients as ``[data]`` and ``[partition]`` say; positions are those of the set.

    Raises
    ------
    ConfigError
        If there are too few examples, or the partition is impossible.
    """
    _check_tests(config, dataset)
    if config.partition.scheme == "saved":
        return _without_tests(_saved(config, dataset), config, dataset)
    chosen = _sample_of(config, dataset)
    if len(held := held_by_server(config, dataset)):
        # Sorted apart: numpy finds unique values among a million by far slower than it sorts them.
        chosen = np.sort(np.setdiff1d(chosen, held, assume_unique=True))
    if config.clients > len(chosen):
        raise ConfigError(
            f"clients = {config.clients} is more than the {len(chosen)} training examples of {dataset.name!r}; "
            "use fewer clients"
        )
    return _split(config, dataset, chosen)


def held_by_server(config: Config, dataset: Dataset) -> np.ndarray:
    """Return the positions in the training set of the examples that the server holds, stratified by class.

    Raises
    ------
    ConfigError
        If it would hold all.
    """
    wanted = config.data.server_examples
    if wanted is None:
        return np.arange(0)
    chosen = np.intersect1d(_sample_of(config, dataset), dataset.trainable, assume_unique=True)
    if wanted >= len(chosen):
        raise ConfigError(
            f"data.server_examples = {wanted} leaves the clients none of the {len(chosen)} training examples of "
            f"{dataset.name!r}; use fewer"
        )
    return chosen[stratified(dataset.labels[chosen], wanted, rng(config.seed, "server examples"))]


def _sample_of(config: Config, dataset: Dataset) -> np.ndarray:
    return sample_positions(config, dataset.labels, config.data.train_examples, "train", dataset.name)


def sample_positions(config: Config, labels: np.ndarray, wanted: int | None, part: str, name: str) -> np.ndarray:
    """Return the positions of the wanted number of examples, stratified by class: all by default.

    Raises
    ------
    ConfigError
        If there are fewer.
    """
    if wanted is None:
        return np.arange(len(labels))
    if wanted > len(labels):
        raise ConfigError(
            f"data.{part}_examples = {wanted} is more than the {len(labels)} examples of {name!r}; use at most "
            "that many"
        )
    return stratified(labels, wanted, rng(config.seed, f"{part} examples"))


def _split(config: Config, dataset: Dataset, chosen: np.ndarray) -> Split:
    settings, tests = config.partition, None
    every = np.arange(len(chosen))
    if settings.test_skew == "uniform":
        # Every client is tested on an IID share of all examples; only the rest is skewed.
        shuffled = rng(config.seed, "uniform test").permutation(every)
        n_test = max(config.clients, round(settings.test * len(chosen)))
        if len(chosen) - n_test < config.clients:
            raise ConfigError(
                f"partition.test_skew = 'uniform' sets {n_test} of {len(chosen)} examples aside for tests, and what is "
                f"left does not fill {config.clients} clients; use fewer clients or a smaller partition.test"
            )
        tested, every = np.sort(shuffled[:n_test]), np.sort(shuffled[n_test:])
        shares = iid(dataset.labels[chosen[tested]], config.clients, rng(config.seed, "uniform test shares"))
        tests = Partition(tested[shares.indices], shares.offsets)
    partition = _partition(config, dataset, chosen[every])
    if isinstance(partition, Split):
        if tests is not None:
            raise ConfigError(
                f"partition.test_skew = 'uniform' does not go with scheme = {settings.scheme!r}, which itself decides "
                "who is tested on what; remove it"
            )
        return _without_tests(partition.positions(chosen), config, dataset)
    partition = Partition(every[partition.indices], partition.offsets)  # raises where an index is out of range
    if len(dataset.held_out):
        marks = dataset.held_out[chosen[partition.indices]]
        tests, partition = _only(partition, marks), _only(partition, ~marks)
        if not tests.sizes.all():
            remedy = "give it some" if settings.scheme == "natural" else "use partition.scheme = 'natural'"
            raise ConfigError(
                f"client {tests.sizes.argmin()} has none of the examples of {dataset.name!r} that are held out for "
                f"tests; {remedy}"
            )
    stream = rng(config.seed, "split")
    try:
        split = hold_out(partition, stream, validation=settings.validation, test=settings.test, tests=tests)
    except ValueError as error:
        raise ConfigError(f"[partition] {error}") from error
    return split if len(chosen) == len(dataset.labels) else split.positions(chosen)


def _only(partition: Partition, marks: np.ndarray) -> Partition:
    """Return the partition of the examples that are marked, in the order of ``partition.indices``."""
    owners = np.repeat(np.arange(len(partition)), partition.sizes)
    sizes = np.bincount(owners[marks], minlength=len(partition))
    return Partition(partition.indices[marks], np.concatenate([[0], np.cumsum(sizes)]))


def _check_tests(config: Config, dataset: Dataset) -> None:
    """Check that nothing else says what clients are tested on where the data set itself does."""
    settings, fields = config.partition, type(config.partition).model_fields
    for name in ("test", "test_skew"):
        if len(dataset.held_out) and getattr(settings, name) != fields[name].default:
            raise ConfigError(
                f"partition.{name} = {getattr(settings, name)!r} does not apply to {dataset.name!r}, which itself says "
                "what clients are tested on; remove it"
            )


def _without_tests(split: Split, config: Config, dataset: Dataset) -> Split:
    """Return a split in which no client trains or validates on what the data set holds out for tests."""
    if len(dataset.held_out) and any(dataset.held_out[each.indices].any() for each in (split.train, split.validation)):
        raise ConfigError(
            f"partition.scheme = {config.partition.scheme!r} lets clients train or validate on examples that "
            f"{dataset.name!r} holds out for tests; use 'natural'"
        )
    return split


def _partition(config: Config, dataset: Dataset, chosen: np.ndarray) -> Partition | Split:
    ids = {column: values[chosen] for column, values in dataset.ids.items()}
    labels = _labels(config, dataset)
    partition = making.make_partition(config, labels[chosen], ids, rng(config.seed, "partition"))
    if not isinstance(partition, Partition | Split):
        raise ConfigError(
            f"partition.scheme = {config.partition.scheme!r} gives {a_type(partition)}; it must be a "
            "Partition or Split, such as Partition.from_owners(owners, clients) with the client of each example"
        )
    if len(partition) != config.clients:
        raise ConfigError(
            f"partition.scheme = {config.partition.scheme!r} gives {len(partition)} clients, and clients = "
            f"{config.clients}; it must give as many"
        )
    return partition


def _is_by_class(settings: PartitionConfig) -> bool:
    catalogue = CATALOGUES["partitions"]
    if catalogue.canonical(settings.scheme) in BY_CLASS:
        return True
    return settings.scheme.startswith(PREFIX) and catalogue.options(settings).get("partition_by") == LABEL


def _labels(config: Config, dataset: Dataset) -> np.ndarray:
    """Return the class of each training example, or, where numbers are predicted, the range that it is put into."""
    settings, task = config.partition, task_of(dataset)
    if settings.bins is not None:
        if task.name != "regression":
            raise ConfigError(
                f"partition.bins = {settings.bins} is for numbers, and the task is {task.name!r}; remove it"
            )
        return quantile_bins(dataset, settings.bins)[0]
    if not task.has_classes and _is_by_class(settings):
        remedy = "set partition.bins = 10, whose ranges stand for classes, or " if task.name == "regression" else ""
        raise ConfigError(
            f"partition.scheme = {settings.scheme!r} splits by class, and the task {task.name!r} has none; {remedy}use "
            "'iid', 'quantity' or 'natural'"
        )
    return dataset.labels


def _saved(config: Config, dataset: Dataset) -> Split:
    given = {f"data.{name}": getattr(config.data, name) is not None for name in ("train_examples", "server_examples")}
    for name in ("validation", "test"):
        default = type(config.partition).model_fields[name].default
        given[f"partition.{name}"] = getattr(config.partition, name) != default
    if useless := next((name for name, is_given in given.items() if is_given), None):
        raise ConfigError(f"partition.scheme = 'saved' already decides who trains and tests on what; remove {useless}")
    split = making.make_partition(config, dataset.fingerprinted, dataset.ids, rng(config.seed, "partition"))
    assert isinstance(split, Split)
    return split
