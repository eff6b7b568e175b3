"""The data of a run: who holds which examples, and what they look like to a model."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.config import Config, DataConfig, making
from fedsim.data import Augmentation, Dataset
from fedsim.data.dataset import stratified
from fedsim.data.heterogeneity import Heterogeneity
from fedsim.federation.split import sample_positions, split_of
from fedsim.seeds import rng
from fedsim.strategy.participants import draw_unseen
from partitions import LabelCounts, Split

InputsAndTargets = tuple[Tensor, Tensor]
# What a split depends on; a config cannot be read without its rounds.
SPLIT_BY = {"rounds", "clients", "seed", "data", "partition"}


class ClientData:
    """A client's share of the training set, in three parts, each made when it is first asked for.

    A part is normalised inputs, shape [n, ...], skewed as the config says, and targets, shape [n] or [n, length].
    Training and test have at least one example; validation may be empty.
    """

    def __init__(self, data: "FederatedData", client: int) -> None:
        self._data = data
        self._client = client

    @cached_property
    def train(self) -> InputsAndTargets:
        """What the client trains on."""
        return self._data._part(self._client, "train", skewed=True)

    @cached_property
    def validation(self) -> InputsAndTargets:
        """What models are selected on."""
        return self._data._part(self._client, "validation", skewed=True)

    @cached_property
    def test(self) -> InputsAndTargets:
        """What the client's models are measured on."""
        return self._data._part(self._client, "test", skewed=self._data.config.partition.test_skew == "alike")


@dataclass(frozen=True)
class FederatedData:
    """A data set shared out over the clients.

    Parameters
    ----------
    dataset
        On the run's device; its test set is the sample that the config asks for.
    split
        What each client trains, validates and tests on: positions in the training set.
    """

    config: Config
    dataset: Dataset
    split: Split

    def heterogeneity(self) -> Heterogeneity:
        """Return how many examples of each class each client holds; of sequences, how many targets."""
        whole = self.split.whole
        targets = self.dataset.train.targets.cpu().numpy()
        counts = LabelCounts.of(whole, targets, len(self.dataset.classes))
        return Heterogeneity(whole.sizes, counts, self.dataset.classes)

    def save_split(self, path: Path) -> Path:
        """Write the index sets to an ``.npz`` file; return its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.split.save(path, self.dataset.labels)
        return path

    @cached_property
    def augmentation(self) -> Augmentation:
        """What is done to the training images; the padding of a crop is black."""
        black = tuple(-mean / std for mean, std in zip(self.dataset.mean, self.dataset.std, strict=True))
        return Augmentation(self.config.data.flip, self.config.data.crop, black)

    def client(self, client: int) -> ClientData:
        """Return a client's examples, normalised and skewed as the config says."""
        return ClientData(self, client)

    def test(self, examples: int | None = None) -> InputsAndTargets:
        """Return the server's test examples, normalised, or a fixed stratified sample of them."""
        test = self.dataset.test
        if examples is not None and examples < len(test):
            chosen = stratified(test.labels.cpu().numpy(), examples, rng(self.config.seed, "evaluation sample"))
            test = test[torch.from_numpy(chosen).to(test.targets.device)]
        return self.dataset.normalise(test.inputs), test.targets

    def train_sample(self, examples: int) -> InputsAndTargets:
        """Return a fixed stratified sample of what the clients train on, normalised: all if it has fewer."""
        return self._sample(self.trained_on, examples, "calibration sample")

    def validation_sample(self, examples: int) -> InputsAndTargets:
        """Return a fixed stratified sample of what the clients validate on, normalised: all if it has fewer."""
        return self._sample(self._seen("validation"), examples, "validation sample")

    @cached_property
    def trained_on(self) -> np.ndarray:
        """Positions in the training set of what the clients train on, in ascending order, without unseen clients'."""
        return self._seen("train")

    def _seen(self, part: str) -> np.ndarray:
        config, positions = self.config, getattr(self.split, part)
        if not (unseen := set(draw_unseen(config.seed, config.clients, config.unseen))):
            return np.sort(positions.indices)
        return np.sort(np.concatenate([positions[client] for client in range(config.clients) if client not in unseen]))

    def _sample(self, held: np.ndarray, examples: int, name: str) -> InputsAndTargets:
        stream = rng(self.config.seed, name)
        return self._select(held[stratified(self.dataset.labels[held], min(examples, len(held)), stream)])

    def _part(self, client: int, part: str, *, skewed: bool) -> InputsAndTargets:
        inputs, targets = self._select(getattr(self.split, part)[client])
        if not skewed:
            return inputs, targets
        stream = rng(self.config.seed, "features", client, part)
        return making.skew_features(self.config.features, inputs, client, self.config.clients, stream), targets

    def _select(self, indices: np.ndarray) -> InputsAndTargets:
        train = self.dataset.train
        chosen = train[torch.from_numpy(indices).to(train.targets.device)]
        return self.dataset.normalise(chosen.inputs), chosen.targets


def federated_data_of(config: Config) -> FederatedData:
    """Read the data of a resolved config, once per process, and share them out.

    Raises
    ------
    ConfigError
        If the data are missing or damaged, or the partition or the feature skew is impossible.
    """
    dataset = _dataset(config)
    labels = dataset.test.labels.numpy()
    tested = sample_positions(config, labels, config.data.test_examples, "test", dataset.name)
    if len(tested) < len(labels):
        dataset = replace(dataset, test=dataset.test[torch.from_numpy(tested)])
    data = FederatedData(config, dataset, _split(config.model_dump_json(include=SPLIT_BY)))
    _ = data.client(0).train  # a feature skew that does not fit the inputs is found here
    return data


def _dataset(config: Config) -> Dataset:
    return _read(config.data.model_dump_json(exclude={"train_examples", "test_examples"}))


# A run is checked before it is played, and those of a sweep often share a partition.
@lru_cache(maxsize=4)
def _split(settings: str) -> Split:
    config = Config.model_validate_json(settings)
    return split_of(config, _dataset(config))


@lru_cache(maxsize=2)
def _read(data: str) -> Dataset:
    return making.make_dataset(DataConfig.model_validate_json(data))
