"""The parts of a run that every process builds alike from the config: data, partition and initial model."""

import copy
import threading
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fedsim import catalog
from fedsim.catalog import Partition
from fedsim.config import Config, DataConfig
from fedsim.data import Dataset
from fedsim.data.dataset import Examples, stratified
from fedsim.errors import ConfigError
from fedsim.layers import Layers
from fedsim.params import Params
from fedsim.seeds import derive, rng


@dataclass(frozen=True)
class ClientData:
    """A client's share of the training set, in three parts.

    Parameters
    ----------
    train, validation, test
        Normalised inputs, shape [n, ...], and targets, shape [n]. Training and test have at least one
        example; validation may be empty.
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Federation:
    """Data, partition and initial model of a run.

    Parameters
    ----------
    dataset
        On the run's device.
    initial
        All entries of the initial model's state dict, the same for the server and every client.
    """

    config: Config
    dataset: Dataset
    partition: Partition
    layers: Layers
    initial: Params
    device: torch.device
    _template: nn.Module
    _models: threading.local = field(default_factory=threading.local)

    def model(self) -> nn.Module:
        """Return this thread's model: its weights are whatever it was last used with."""
        if not hasattr(self._models, "model"):
            self._models.model = copy.deepcopy(self._template)
        return self._models.model

    def label_counts(self) -> np.ndarray:
        """Return how many examples of each class each client holds, shape [clients, classes]."""
        return self.partition.label_counts(self.dataset.labels, len(self.dataset.classes))

    def draws_while_training(self) -> bool:
        """Tell whether the model draws random numbers as it trains: torch then has one stream for all threads."""
        return any(isinstance(module, _DropoutNd) for module in self._template.modules())

    def client_indices(self, client: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the positions in the training set of a client's train, validation and test examples."""
        indices = rng(self.config.seed, "split", client).permutation(self.partition[client])
        settings, n = self.config.partition, len(indices)
        test = min(max(1, round(settings.test * n)), n - 1)
        validation = min(max(1, round(settings.validation * n)), n - test - 1) if settings.validation else 0
        return indices[test + validation :], indices[test : test + validation], indices[:test]

    def client_data(self, client: int) -> ClientData:
        """Return a client's examples, normalised."""
        train, validation, test = (self._select(indices) for indices in self.client_indices(client))
        return ClientData(train, validation, test)

    def test_data(self, examples: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the server's test examples, normalised, or a fixed stratified sample of them."""
        test = self.dataset.test
        if examples is not None and examples < len(test):
            test = test[stratified(test.targets, examples, rng(self.config.seed, "evaluation sample"))]
        return self.dataset.normalise(test.inputs), test.targets

    def train_sample(self, examples: int) -> Tensor:
        """Return normalised inputs of a fixed stratified sample of the training set: all if it has fewer."""
        targets = self.dataset.train.targets
        indices = stratified(targets, min(examples, len(targets)), rng(self.config.seed, "calibration sample"))
        return self._select(indices.cpu().numpy())[0]

    def _select(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = self.dataset.train[torch.from_numpy(indices).to(self.device)]
        return self.dataset.normalise(chosen.inputs), chosen.targets


def federation_of(config: Config) -> Federation:
    """Build the parts of a run from a resolved config; the data are read once per process.

    Raises
    ------
    ConfigError
        If the data are missing or damaged, or the model or the partition is impossible.
    """
    dataset = _sample(_read(config.data.model_dump_json(exclude={"train_examples", "test_examples"})), config)
    partition = _partition(config, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "initial model"))
        model = catalog.make_model(config, dataset).eval()
    device = choose_device(config.device)
    return Federation(
        config=config,
        dataset=dataset.to(device),
        partition=partition,
        layers=Layers.of(model),
        initial={key: value.detach().clone() for key, value in model.state_dict().items()},
        device=device,
        _template=model.to(device),
    )


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the first GPU, or the CPU where there is none.

    Raises
    ------
    ConfigError
        If this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[device.type]:
        raise ConfigError(f"device = {name!r} is not on this machine; use 'auto' or 'cpu'")
    return device


@lru_cache(maxsize=2)
def _read(data: str) -> Dataset:
    return catalog.make_dataset(DataConfig.model_validate_json(data))


def _sample(dataset: Dataset, config: Config) -> Dataset:
    """Keep as many examples as ``[data]`` asks for, with each class's share unchanged."""
    parts: dict[str, Any] = {}
    for part in ("train", "test"):
        examples: Examples = getattr(dataset, part)
        wanted = getattr(config.data, f"{part}_examples")
        if wanted is None:
            continue
        if wanted > len(examples):
            raise ConfigError(
                f"data.{part}_examples = {wanted} is more than the {len(examples)} {part} examples of {dataset.name!r}"
            )
        parts[part] = examples[stratified(examples.targets, wanted, rng(config.seed, f"{part} examples"))]
    return replace(dataset, **parts)


def _partition(config: Config, dataset: Dataset) -> Partition:
    n = len(dataset.train)
    if config.clients > n:
        raise ConfigError(
            f"clients = {config.clients} is more than the {n} training examples of {dataset.name!r}; use fewer clients"
        )
    partition = catalog.make_partition(config, dataset.labels, rng(config.seed, "partition"))
    smallest = int(partition.sizes.argmin())
    if partition.sizes[smallest] < 2:
        raise ConfigError(
            f"[partition] client {smallest} has {partition.sizes[smallest]} examples and needs at least 2, one to "
            "train and one to test on; use fewer clients or more examples"
        )
    return partition
