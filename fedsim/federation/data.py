"""The data of a run: which client holds which examples, as a model sees them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.config import Config, content, making
from fedsim.data import Augmentation, Dataset
from fedsim.data.dataset import stratified
from fedsim.data.fingerprint import looking_once
from fedsim.data.heterogeneity import Heterogeneity
from fedsim.data.tasks import label_shares
from fedsim.errors import ConfigError
from fedsim.federation.origins import origins_of
from fedsim.federation.participants import unseen
from fedsim.federation.split import held_by_server, sample_positions, split_of
from fedsim.memory import TENSOR_BYTES
from fedsim.models.draws import are_equal, same_draws, stream_states
from fedsim.seeds import derive, rng
from fedsim.training.targets import IGNORED
from partitions import LabelCounts, Partition, Split

InputsAndTargets = tuple[Tensor, Tensor]
SPLIT_BY = {"clients", "seed", "data", "partition"}  # what a split depends on
FIT_BY = SPLIT_BY | {"unseen"}  # what the normalisation depends on
Fit = Literal["trained on", "all"]
# Clients' examples that are held normalised, so that they need not be made in each round: a part of what a process with
# torch takes. All of Fashion-MNIST fits in.
HELD_BYTES = 2**28
CHECKED = 1000  # clients, evenly spaced, whose inputs a custom skew makes before the start


class ClientData:
    """A client's share of the training set, in three parts, each made when it is first used.

    A part is normalised inputs, shape [n, ...], skewed as the config says, and targets, shape [n] or [n, length].
    Training and test have at least one example; validation may be empty.
    """

    def __init__(self, data: "FederatedData", client: int) -> None:
        self._data = data
        self._client = client

    @cached_property
    def train(self) -> InputsAndTargets:
        """Training examples."""
        return self._data._held_part(self._client, "train", skewed=True)

    @cached_property
    def validation(self) -> InputsAndTargets:
        """Validation examples, for the selection of models."""
        return self._data._held_part(self._client, "validation", skewed=True)

    @cached_property
    def test(self) -> InputsAndTargets:
        """Test examples."""
        return self._data._held_part(self._client, "test", skewed=self._data.config.partition.test_skew == "alike")


class _Held:
    """Examples that were made once and are held, as long as they fit: the first ones stay.

    With all clients in each round, those that were used last would never be asked for again before they are dropped.

    Parameters
    ----------
    limit
        Size of all together, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._examples: dict[tuple[int, str], tuple[InputsAndTargets, list[int]]] = {}

    def get(self, key: tuple[int, str], make: Callable[[], InputsAndTargets]) -> InputsAndTargets:
        """Return the examples under a key, made if they are not held or if somebody has changed them in place."""
        examples, versions = self._examples.get(key, (None, None))
        if examples is None or [each._version for each in examples] != versions:
            was_held = examples is not None
            with torch.inference_mode(False):  # whose tensors do not say that they were changed
                examples = make()
            size = sum(each.nbytes + TENSOR_BYTES for each in examples)
            if was_held or size <= self._left:
                self._left -= 0 if was_held else size
                self._examples[key] = examples, [each._version for each in examples]
        return examples


@dataclass(frozen=True)
class FederatedData:
    """A data set, split across the clients.

    Parameters
    ----------
    dataset
        On the run's device; its test set is the sample that the config asks for.
    split
        Positions in the training set that each client trains, validates and tests on.
    tested_from
        Number of examples of the data set's whole test set.
    tested
        Positions in it of the test set's examples.
    """

    config: Config
    dataset: Dataset
    split: Split
    tested_from: int
    tested: np.ndarray = field(default_factory=lambda: np.arange(0))

    def heterogeneity(self) -> Heterogeneity:
        """Return the number of examples of each class that each client holds; for sequences, of targets.

        Of numbers to predict, ranges between quantiles stand for classes.
        """
        whole = self.split.whole
        labels, names = label_shares(self.dataset)
        counts = LabelCounts.of(whole, labels, len(names), ignored=IGNORED)
        return Heterogeneity(whole.sizes, counts, names, self.origins)

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """Name of each client's origin, such as its hospital; empty if they have none."""
        return origins_of(self.split.whole, self.dataset, self.config.partition)

    def save_split(self, path: Path) -> Path:
        """Write the index sets to an ``.npz`` file; return its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.split.save(path, self.dataset.fingerprinted)
        return path

    @cached_property
    def augmentation(self) -> Augmentation:
        """Augmentation of the training images; crops are padded with black."""
        black = tuple(-mean / std for mean, std in zip(self.dataset.mean, self.dataset.std, strict=True))
        return Augmentation(self.config.data.flip, self.config.data.crop, black)

    def client(self, client: int) -> ClientData:
        """Return a client's examples, normalised and skewed as configured."""
        return ClientData(self, client)

    @cached_property
    def _held(self) -> _Held:
        return _Held(HELD_BYTES)

    def _held_part(self, client: int, part: str, *, skewed: bool) -> InputsAndTargets:
        return self._held.get((client, part), partial(self._part, client, part, skewed=skewed))

    @cached_property
    def _skew(self) -> Callable[[Tensor, int, int, np.random.Generator], Tensor]:
        return making.feature_skew(self.config.features)

    def test(self, examples: int | None = None) -> InputsAndTargets:
        """Return the server's test examples, normalised, or a fixed stratified sample of them."""
        test = self.dataset.test
        if examples is not None and examples < len(test):
            chosen = stratified(test.labels.cpu().numpy(), examples, rng(self.config.seed, "evaluation sample"))
            test = test[torch.from_numpy(chosen).to(test.targets.device)]
        inputs = self.dataset.normalise(test.inputs)
        # Other processes may read the same memory, and a model or a loss may change what it gets in place.
        return inputs.clone() if inputs is test.inputs else inputs, test.targets.clone()

    def server(self) -> InputsAndTargets | None:
        """Return the training examples that the server holds, normalised; None if it holds none."""
        held = held_by_server(self.config, self.dataset)
        return self._select(held) if len(held) else None

    def train_sample(self, examples: int) -> InputsAndTargets:
        """Return a fixed stratified sample of what the clients train on, normalised: all if it has fewer."""
        return self._sample(self.trained_on, examples, "calibration sample")

    def validation_sample(self, examples: int) -> InputsAndTargets:
        """Return a fixed stratified sample of what the clients validate on, normalised: all if it has fewer."""
        return self._sample(_seen(self.split.validation, self.config), examples, "validation sample")

    @cached_property
    def trained_on(self) -> np.ndarray:
        """Positions in the training set that the clients train on, in ascending order, without unseen clients'."""
        return _seen(self.split.train, self.config)

    def _sample(self, held: np.ndarray, examples: int, name: str) -> InputsAndTargets:
        stream = rng(self.config.seed, name)
        return self._select(held[stratified(self.dataset.labels[held], min(examples, len(held)), stream)])

    def _part(self, client: int, part: str, *, skewed: bool) -> InputsAndTargets:
        inputs, targets = self._select(getattr(self.split, part)[client])
        if not skewed:
            return inputs, targets
        if ":" not in self.config.features.skew:
            return self._skewed(inputs, client, part), targets
        before = self._streams()
        made = self._skewed(inputs, client, part)
        # Another thread may have moved the streams meanwhile; then the skew itself tells whether it drew from them.
        if not are_equal(before, self._streams()):
            again = self._skewed(self._select(getattr(self.split, part)[client])[0], client, part)
            if not torch.equal(made, again):
                raise self._draws_error()
        return made, targets

    def _skewed(self, inputs: Tensor, client: int, part: str) -> Tensor:
        return self._skew(inputs, client, self.config.clients, rng(self.config.seed, "features", client, part))

    def _streams(self) -> list[Any]:
        return stream_states(self.dataset.train.inputs.device)

    def _draws_error(self) -> ConfigError:
        return ConfigError(
            f"features.skew = {self.config.features.skew!r} draws from a global random stream, so that a client's "
            "inputs would differ from time to time; draw from its argument rng, such as "
            "rng.normal(size=tuple(inputs.shape))"
        )

    def check_skew(self) -> None:
        """Check that the feature skew leaves the global random streams alone, for up to `CHECKED` clients.

        Each client's inputs are checked again when they are made.

        Raises
        ------
        ConfigError
            If it draws from one for any of them.
        """
        before, number = self._streams(), min(self.config.clients, CHECKED)
        for client in np.linspace(0, self.config.clients - 1, number, dtype=np.int64).tolist():
            self._part(client, "train", skewed=True)
        if not are_equal(before, self._streams()):
            raise self._draws_error()

    def _select(self, indices: np.ndarray) -> InputsAndTargets:
        train = self.dataset.train
        chosen = train[torch.from_numpy(indices).to(train.targets.device)]
        return self.dataset.normalise(chosen.inputs), chosen.targets


def _seen(positions: Partition, config: Config) -> np.ndarray:
    """Return the positions of all clients but unseen ones, in ascending order."""
    held, never = positions.indices, set(unseen(config))
    if never:
        held = np.concatenate([positions[client] for client in range(config.clients) if client not in never])
    marks = np.zeros(held.max(initial=-1) + 1, dtype=bool)
    marks[held] = True
    found = np.flatnonzero(marks)
    return found if len(found) == len(held) else np.sort(held)  # clients with copies hold the same examples


def federated_data_of(config: Config, *, fit: Fit = "trained on") -> FederatedData:
    """Read the data of a resolved config, once per process, and split them across the clients.

    Parameters
    ----------
    fit
        Training examples whose statistics normalise the inputs: those that clients train on, or, without a run, all.

    Raises
    ------
    ConfigError
        If the data are missing or damaged, or the partition or the feature skew is impossible.
    """
    with looking_once():
        dataset, files = _dataset(config), content.versions(config, "data", "partition")
    labels = dataset.test.labels.numpy()
    tested = sample_positions(config, labels, config.data.test_examples, "test", dataset.name)
    split = _split(_part_of(config, SPLIT_BY, files))
    dataset = _fitted(_part_of(config, FIT_BY, files), fit)
    if len(tested) < len(labels):
        dataset = replace(dataset, test=dataset.test[torch.from_numpy(tested)])
    data = FederatedData(config, dataset, split, len(labels), tested)
    _ = data.client(0).train  # a feature skew that does not fit the inputs is found here
    if ":" in config.features.skew:
        data.check_skew()
    return data


@dataclass(frozen=True)
class _Part:
    """A config that stands for all configs with the same values in a part of it.

    Parameters
    ----------
    settings
        That part as JSON, in which 1 and true differ.
    files
        Content of the files that it names and of the sources of its custom parts.
    """

    settings: str
    files: tuple[str, ...]
    config: Config = field(compare=False)


def _part_of(config: Config, fields: set[str], files: tuple[str, ...]) -> _Part:
    return _Part(config.model_dump_json(include=fields), files, config)


def _dataset(config: Config) -> Dataset:
    settings = config.data.model_dump_json(exclude={"train_examples", "test_examples", "server_examples"})
    return _read(_Part(settings, content.versions(config, "data"), config))


# A run is checked before it starts, and those of a sweep often share a partition.
@lru_cache(maxsize=4)
def _split(part: _Part) -> Split:
    dataset = _dataset(part.config)
    with same_draws(seed=derive(part.config.seed, "partition")):
        return split_of(part.config, dataset)


@lru_cache(maxsize=4)
def _fitted(part: _Part, fit: Fit) -> Dataset:
    dataset, split = _dataset(part.config), _split(_part_of(part.config, SPLIT_BY, part.files))
    return dataset.fitted_to(_seen(split.train, part.config) if fit == "trained on" else dataset.trainable)


@lru_cache(maxsize=2)
def _read(part: _Part) -> Dataset:
    with same_draws():  # all runs that name these data have the same, whatever their seed
        return making.make_dataset(part.config.data)
