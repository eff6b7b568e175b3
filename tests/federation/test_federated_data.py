"""Who holds what, and how it looks to a client: sampling, splits, uniform tests, feature skew, saved sets, PFLlib."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedsim.config import Config, naming
from fedsim.data import Dataset, Examples, image_dataset
from fedsim.errors import ConfigError
from fedsim.federation.data import federated_data_of
from fedsim.federation.pfllib import write_pfllib
from fedsim.seeds import rng

TOY = {"name": "toy", "examples": 400, "classes": 4}


@pytest.fixture
def toy(tiny: Callable[..., Config]) -> Callable[..., Config]:
    return lambda **changes: tiny(**({"data": TOY, "partition": {"scheme": "dirichlet", "alpha": 0.2}} | changes))


def test_the_sets_of_all_clients_are_disjoint_parts_of_the_sample(toy: Callable[..., Config]) -> None:
    data = federated_data_of(toy(data=TOY | {"train_examples": 300}))
    held = np.concatenate([part.indices for part in data.split.parts])
    assert len(set(held.tolist())) == len(held) == 300
    assert held.max() > 300  # positions are those of the whole training set
    inputs, targets = data.client(1).validation
    expected = data.dataset.train[torch.from_numpy(data.split.validation[1])]
    assert torch.equal(inputs, data.dataset.normalise(expected.inputs))
    assert torch.equal(targets, expected.targets)


Written = Callable[[Path, np.ndarray, np.ndarray], dict[str, object]]


def as_arrays(folder: Path, train: np.ndarray, test: np.ndarray) -> dict[str, object]:
    """Write inputs as a file of arrays; return ``[data]``."""
    targets = {f"{part}_targets": np.arange(len(inputs)) % 2 for part, inputs in (("train", train), ("test", test))}
    np.savez(folder / "x.npz", train_inputs=train, test_inputs=test, **targets)
    return {"name": "arrays", "path": str(folder / "x.npz")}


def as_bytes(folder: Path, train: np.ndarray, test: np.ndarray) -> dict[str, object]:
    """Write inputs as bytes of images."""
    return as_arrays(folder, *(each[:, None].clip(0, 255).astype(np.uint8) for each in (train, test)))


def as_table(folder: Path, train: np.ndarray, test: np.ndarray) -> dict[str, object]:
    """Write inputs as tables, with a column of texts."""
    for part, inputs in (("train", train), ("test", test)):
        rows = pd.DataFrame(inputs.reshape(len(inputs), -1)).add_prefix("x")
        rows.assign(text=np.where(np.arange(len(rows)) % 3, "a", "b"), label=np.arange(len(rows)) % 2).to_csv(
            folder / f"{part}.csv", index=False
        )
    return {"name": "table", "path": str(folder), "target": ["label"]}


@pytest.mark.parametrize("written", [as_arrays, as_bytes, as_table])
def test_what_is_held_out_has_no_part_in_the_normalisation(
    written: Written, toy: Callable[..., Config], tmp_path: Path
) -> None:
    numbers = np.random.default_rng(0).normal(100, 20, (80, 3, 3)).round()
    settings = {"unseen": 0.25, "partition": {"scheme": "iid"}}
    before = federated_data_of(toy(data=written(tmp_path, numbers[:60], numbers[60:]), **settings))
    trained = before.trained_on
    assert 0 < len(trained) < 40
    odd = np.full_like(numbers, 2e6)
    odd[trained] = numbers[trained]
    after = federated_data_of(toy(data=written(tmp_path, odd[:60], odd[60:]), **settings))
    assert torch.equal(*(data.train_sample(100)[0] for data in (before, after)))
    assert not torch.equal(*(data.test()[0] for data in (before, after)))
    inputs = before.train_sample(100)[0][:, : 9 if written is as_table else None].double()
    channels = inputs.transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 1e-5
    assert channels.std(1, correction=0).numpy() == pytest.approx(1, abs=1e-5)


def test_without_a_run_the_whole_training_set_normalises_whatever_the_seed(
    toy: Callable[..., Config], tmp_path: Path
) -> None:
    numbers = np.random.default_rng(0).normal(100, 20, (80, 3, 3))
    data = as_arrays(tmp_path, numbers[:60], numbers[60:])
    first, second = (federated_data_of(toy(data=data, seed=seed), fit="all").dataset for seed in (0, 1))
    assert torch.equal(first.normalise(first.test.inputs), second.normalise(second.test.inputs))
    assert first.normalise(first.train.inputs).double().transpose(0, 1).flatten(1).mean(1).abs().max() < 1e-5


def test_the_statistics_of_a_data_set_of_ones_own_stay_as_given() -> None:
    inputs, targets = torch.rand(6, 2), torch.arange(6) % 2
    given = Dataset("x", Examples(inputs, targets), Examples(inputs, targets), ("a", "b"), mean=(0.1, 0.2), std=(1, 2))
    assert given.fitted_to(np.arange(3)) is given
    measured = image_dataset("y", Examples((255 * inputs).byte()[..., None, None], targets), given.test, ("a", "b"))
    assert measured.fitted_to(np.arange(3)).mean != measured.mean
    for changes in ({"mean": (), "std": ()}, {"mean": (0.1, 0.2)}):
        changed = replace(measured, **changes)
        assert changed.fitted_to(np.arange(3)) is changed


def test_with_uniform_tests_each_client_is_tested_on_like_shares_of_all_classes(toy: Callable[..., Config]) -> None:
    settings = {"scheme": "shards", "classes_per_client": 1, "test": 0.25, "test_skew": "uniform"}
    data = federated_data_of(toy(partition=settings, clients=4))
    assert set(data.split.test.sizes) == {25}
    held = np.concatenate([part.indices for part in data.split.parts])
    assert sorted(held.tolist()) == list(range(400))
    for client in range(4):
        train, _, test = (np.unique(data.dataset.labels[indices]) for indices in data.split.client(client))
        assert (len(train), len(test)) == (1, 4)


def test_tests_that_are_alike_have_the_clients_own_classes(toy: Callable[..., Config]) -> None:
    data = federated_data_of(toy(partition={"scheme": "shards", "classes_per_client": 1}, clients=4))
    for client in range(4):
        train, _, test = (set(data.dataset.labels[indices]) for indices in data.split.client(client))
        assert train == test


def test_a_feature_skew_reaches_all_of_a_clients_sets_but_uniform_tests(toy: Callable[..., Config]) -> None:
    settings = {"skew": "rotation", "degrees": [0.0, 90.0]}
    plain, skewed = federated_data_of(toy()), federated_data_of(toy(features=settings))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(plain.client(0), part)[0], getattr(skewed.client(0), part)[0])
        assert torch.equal(
            torch.rot90(getattr(plain.client(1), part)[0], 1, (2, 3)), getattr(skewed.client(1), part)[0]
        )
    assert torch.equal(plain.test()[0], skewed.test()[0])
    uniform = {"scheme": "iid", "test_skew": "uniform"}
    plain, skewed = (federated_data_of(toy(partition=uniform, features=f)) for f in ({"skew": "none"}, settings))
    assert torch.equal(plain.client(1).test[0], skewed.client(1).test[0])
    assert not torch.equal(plain.client(1).train[0], skewed.client(1).train[0])


def test_an_example_has_the_same_noise_each_time_and_parts_have_their_own(toy: Callable[..., Config]) -> None:
    data = federated_data_of(toy(features={"skew": "noise", "variance": 0.5}))
    plain = federated_data_of(toy())
    first, again = data.client(2), data.client(2)
    assert torch.equal(first.train[0], again.train[0])
    noises = [getattr(first, part)[0][0] - getattr(plain.client(2), part)[0][0] for part in ("train", "test")]
    assert not torch.allclose(noises[0], noises[1])


def test_saved_sets_are_those_that_a_run_with_them_uses(toy: Callable[..., Config], tmp_path: Path) -> None:
    data = federated_data_of(toy(data=TOY | {"train_examples": 300}, seed=3))
    path = data.save_split(tmp_path / "split.npz")
    saved = {"scheme": "saved", "path": str(path)}
    again = federated_data_of(toy(partition=saved, seed=8))
    for part, other in zip(data.split.parts, again.split.parts, strict=True):
        assert np.array_equal(part.indices, other.indices)
        assert np.array_equal(part.offsets, other.offsets)
    with pytest.raises(ConfigError, match=r"remove data.train_examples"):
        federated_data_of(toy(data=TOY | {"train_examples": 300}, partition=saved))
    for held_out in ({"test": 0.5}, {"validation": 0.0}):
        with pytest.raises(ConfigError, match=rf"remove partition.{next(iter(held_out))}"):
            federated_data_of(toy(partition=saved | held_out))
    with pytest.raises(ConfigError, match=r"split.npz holds 4 clients and the run has 5"):
        federated_data_of(toy(partition=saved, clients=5))
    with pytest.raises(ConfigError, match=r"\[partition\] .*split.npz"):
        federated_data_of(toy(data=TOY | {"seed": 1}, partition=saved))


@pytest.mark.parametrize("columns", [1, 3])
def test_sets_saved_for_other_numbers_to_predict_or_labels_are_refused(
    columns: int, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    def config(seed: int, **partition: Any) -> Config:
        values = np.random.default_rng(seed).normal(size=(40, columns))
        targets = values[:, 0] if columns == 1 else (values > 0).astype(np.float32)
        rows = {
            f"{part}_{what}": each
            for part in ("train", "test")
            for what, each in (("inputs", values), ("targets", targets))
        }
        np.savez(tmp_path / f"{seed}.npz", **rows)
        data = {"name": "arrays", "path": str(tmp_path / f"{seed}.npz")}
        return tiny(data=data, partition={"scheme": "iid"} | partition)

    path = federated_data_of(config(0)).save_split(tmp_path / "split.npz")
    saved = {"scheme": "saved", "path": str(path)}
    assert len(federated_data_of(config(0, **saved)).split) == 4
    with pytest.raises(ConfigError, match=r"split\.npz was saved for other labels"):
        federated_data_of(config(1, **saved))


def test_a_run_is_named_by_what_a_file_of_a_partition_holds(toy: Callable[..., Config], tmp_path: Path) -> None:
    def name(path: Path) -> str:
        return naming.run_name(toy(partition={"scheme": "saved", "path": str(path)}))

    first = federated_data_of(toy()).save_split(tmp_path / "a.npz")
    second = federated_data_of(toy(seed=1)).save_split(tmp_path / "b.npz")
    assert name(first) != name(second)
    copy = tmp_path / "copy.npz"
    copy.write_bytes(first.read_bytes())
    assert name(copy) == name(first)


def test_a_run_is_named_by_what_is_in_the_data_and_not_by_their_path(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    def write(path: Path, last: int) -> Path:
        inputs, targets = np.arange(40, dtype=np.float32).reshape(20, 2), np.arange(20) % 2
        inputs[-1, -1] = last
        np.savez(path, train_inputs=inputs, train_targets=targets, test_inputs=inputs, test_targets=targets)
        return path

    def name(path: Path) -> str:
        return naming.run_name(tiny(data={"name": "arrays", "path": str(path)}))

    first = name(write(tmp_path / "a.npz", 5))
    assert name(write(tmp_path / "b.npz", 5)) == first
    assert name(write(tmp_path / "a.npz", 6)) != first


def test_each_client_has_noise_of_its_own(toy: Callable[..., Config]) -> None:
    skewed, plain = (federated_data_of(toy(features={"skew": skew})) for skew in ("noise", "none"))
    noises = [skewed.client(k).train[0][0] - plain.client(k).train[0][0] for k in (0, 1)]
    assert not torch.allclose(noises[0] * 2**0.5, noises[1], atol=1e-4)


def test_pfllibs_folder_holds_no_client_of_an_earlier_partition(toy: Callable[..., Config], tmp_path: Path) -> None:
    for clients in (4, 2):
        write_pfllib(federated_data_of(toy(clients=clients)), tmp_path)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["0.npz", "1.npz"]


def test_natural_clients_are_the_ids_of_the_data(tiny: Callable[..., Config]) -> None:
    config = tiny(data={"name": "toy-text", "speakers": 6}, partition={"scheme": "natural"}, clients=4)
    data = federated_data_of(config)
    speakers = [set(data.dataset.ids["speaker"][indices]) for indices in data.split.whole]
    assert [len(each) for each in speakers] == [1] * 4
    assert len(set.union(*speakers)) == 4


def test_pfllib_reads_what_is_written_for_it(toy: Callable[..., Config], tmp_path: Path) -> None:
    data = federated_data_of(toy(features={"skew": "rotation"}))
    write_pfllib(data, tmp_path)
    for client in range(4):
        for part in ("train", "test"):
            # As PFLlib's read_data and read_client_data do.
            with (tmp_path / part / f"{client}.npz").open("rb") as file:
                content = np.load(file, allow_pickle=True)["data"].tolist()
            inputs, targets = getattr(data.client(client), part)
            assert torch.equal(torch.Tensor(content["x"]).type(torch.float32), inputs)
            assert torch.equal(torch.Tensor(content["y"]).type(torch.int64), targets)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_clients"], config["num_classes"], config["alpha"]) == (4, 4, 0.2)
    held = data.dataset.labels[data.split.whole[2]]
    assert config["Size of samples for labels in clients"][2] == [
        [label, int((held == label).sum())] for label in np.unique(held).tolist()
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 401}, "clients = 401 is more than the 400 training examples"),
        ({"clients": 300, "partition": {"scheme": "iid"}}, r"\[partition\] .*needs at least 2"),
        ({"data": TOY | {"train_examples": 401}}, "data.train_examples = 401 is more than the 400 examples"),
        ({"data": TOY | {"crop": 8}}, "data.crop = 8 must be less than the 8 pixels"),
        (
            {
                "clients": 40,
                "data": TOY | {"train_examples": 40},
                "partition": {"scheme": "iid", "test_skew": "uniform"},
            },
            "partition.test_skew = 'uniform' sets 40 of 40 examples aside",
        ),
        ({"data": {"name": "toy-text", "flip": True}}, "data.flip and data.crop are for images"),
        ({"features": {"skew": "rotate"}}, "features.skew = 'rotate' is unknown; known are: none, rotation, noise"),
        ({"partition": {"scheme": "natural", "column": "writer"}}, r"\[partition\] .*writer.*domain"),
        ({"data": {"name": "digits"}, "partition": {"scheme": "natural"}}, r"\[partition\] .*ids"),
        (
            {"data": {"name": "toy-text"}, "features": {"skew": "noise"}, "partition": {"scheme": "iid"}},
            r"\[features\] noise needs numeric inputs",
        ),
    ],
)
def test_impossible_requests_are_one_line(toy: Callable[..., Config], changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        federated_data_of(toy(**changes))
    assert "\n" not in str(error.value)


def test_the_black_that_pads_a_crop_is_the_images_own(toy: Callable[..., Config]) -> None:
    data = federated_data_of(toy(data=TOY | {"crop": 2}))
    black = data.dataset.normalise(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert data.augmentation.fill == pytest.approx([float(black[0, 0, 0, 0])])
    images = data.augmentation.move(black.repeat(5, 1, 1, 1), *data.augmentation.draw(5, rng(0)))
    assert torch.allclose(images, black.expand_as(images))


def test_a_clients_examples_are_made_once_as_long_as_there_is_memory_for_them(
    toy: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = federated_data_of(toy(features={"skew": "noise"}))
    first = data.client(3).train[0]
    assert data.client(3).train[0] is first
    as_made = first.clone()
    with torch.inference_mode():
        first[:2].add_(1)  # as a model does that works in place on its inputs
        first = data.client(3).train[0]
    assert torch.equal(first, as_made)
    monkeypatch.setattr("fedsim.federation.data.HELD_BYTES", 0)
    without_memory = federated_data_of(toy(features={"skew": "noise"}))
    assert without_memory.client(3).train[0] is not without_memory.client(3).train[0]
    assert torch.equal(without_memory.client(3).train[0], first)


def test_runs_with_the_same_data_and_partition_share_a_split(toy: Callable[..., Config]) -> None:
    splits = [federated_data_of(toy(**changes)).split for changes in ({}, {"rounds": 9}, {"seed": 1}, {"clients": 3})]
    assert splits[0] is splits[1]
    assert len({id(split) for split in splits}) == 3
