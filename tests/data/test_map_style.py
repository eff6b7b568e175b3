"""Data sets of torch, and arrays, that a user's function returns."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from fedsim.config.custom import forget_changed
from fedsim.config.making import make_dataset
from fedsim.config.tables import DataConfig
from fedsim.data.checks import check_dataset
from fedsim.data.dataset import Dataset, channel_statistics
from fedsim.data.identity import identity_of
from fedsim.data.map_style import as_dataset
from fedsim.data.places import cache_folder
from fedsim.errors import ConfigError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Pictures(TorchDataset[Any]):
    """Pictures of noise, of three kinds."""

    classes = ("cat", "dog", "owl")
    reads = 0

    def __init__(self, n: int, seed: int = 0, transform: Callable[[Any], Any] | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.pixels = rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        type(self).reads += 1
        picture = Image.fromarray(self.pixels[index])
        return (self.transform(picture) if self.transform else picture), index % 3


class Steps(IterableDataset[Any]):
    """Examples without places."""

    def __iter__(self) -> Iterator[Any]:
        yield from ()


def pair(**options: Any) -> tuple[Pictures, Pictures]:
    return Pictures(30, **options), Pictures(12, 1, **options)


def numbers(n: int = 30, **arrays: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "train_inputs": rng.random((n, 4)),
        "train_targets": np.arange(n) % 3,
        "test_inputs": torch.from_numpy(rng.random((9, 4))),
        "test_targets": torch.arange(9) % 3,
    } | arrays


def caches() -> list[Path]:
    return [path for path in (cache_folder() / "images").glob("*") if path.is_dir()]


def test_pictures_are_read_once_and_mapped_by_every_process() -> None:
    found = as_dataset(pair(), "mine:pair")
    pixels = torch.from_numpy(Pictures(30).pixels).permute(0, 3, 1, 2)
    assert torch.equal(found.train.inputs, pixels)
    assert found.train.targets.tolist() == [index % 3 for index in range(30)]
    assert found.test.inputs[3].tolist() == Pictures(12, 1).pixels[3].transpose(2, 0, 1).tolist()
    assert found.classes == ("cat", "dog", "owl")
    assert (found.mean, found.std) == channel_statistics(pixels, 255.0)
    some = np.array([1, 4, 20])
    assert (found.fitted_to(some).mean, found.fitted_to(some).std) == channel_statistics(pixels[some], 255.0)
    Pictures.reads = 0
    again = as_dataset(pair(), "mine:pair")
    assert torch.equal(again.train.inputs, pixels)
    assert Pictures.reads == 1  # the first, for its size
    assert len(caches()) == 1


@pytest.mark.parametrize("options", [{"seed": 5}, {"transform": transforms.Grayscale()}])
def test_other_pictures_or_transforms_are_read_anew(options: dict[str, Any]) -> None:
    before, after = (as_dataset((Pictures(30, **each),) * 2, "mine:pair") for each in ({}, options))
    assert before.mean != after.mean
    assert after.shape == ((1, 6, 5) if "transform" in options else (3, 6, 5))
    assert len(caches()) == 2


def test_a_data_set_that_cannot_be_recognised_is_read_every_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = as_dataset(pair(transform=lambda picture: transforms.ToTensor()(picture)), "mine:pair")
    assert "are read in every process" in caplog.text
    assert not caches()
    expected = torch.stack([transforms.ToTensor()(Image.fromarray(each)) for each in Pictures(30).pixels])
    assert torch.equal(found.train.inputs, expected)
    assert found.scale == 1.0


def test_the_identity_changes_with_files_code_and_state_and_not_with_the_order_of_sets(tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.csv", tmp_path / "pictures"
    file.write_text("1")
    folder.mkdir()
    (folder / "a.png").write_text("1")
    state = {"file": str(file), "folder": folder, "names": {"b", "a", "c"}, "weights": torch.arange(3)}
    before = identity_of(state)
    assert before == identity_of(dict(state, names={"c", "a", "b"}, weights=torch.arange(6)[:3]))
    (folder / "a.png").write_text("22")
    changed = identity_of(state)
    file.write_text("22")
    found = {before, changed, identity_of(state), identity_of(state | {"weights": torch.arange(3) + 1})}
    assert len(found) == 4
    assert identity_of(open) is not None
    assert identity_of({"root": "."}) is identity_of({"root": Path("/")}) is None  # too large to look at
    assert identity_of(lambda: 0) is None


def test_parts_of_a_data_set_have_its_classes() -> None:
    train, test = pair()
    found = as_dataset({"train": Subset(train, range(3, 30)), "test": Subset(test, range(9))}, "mine:pair")
    assert (len(found.train), len(found.test)) == (27, 9)
    assert found.classes == ("cat", "dog", "owl")


def test_numbers_of_a_tensor_data_set_are_a_regression() -> None:
    sets = [TensorDataset(torch.randn(20, 4).double(), torch.randn(20).double()) for _ in range(2)]
    found = as_dataset(sets, "mine:pair")
    assert found.train.targets.dtype == torch.float32
    assert torch.equal(found.train.inputs, sets[0].tensors[0])
    assert found.classes == ()


def test_arrays_are_taken_as_they_are() -> None:
    named = as_dataset(numbers(train_id_site=np.array(["a", "b"] * 15)), "mine:pair")
    rows = numbers()
    paired = as_dataset(
        ((rows["train_inputs"], rows["train_targets"]), (rows["test_inputs"], rows["test_targets"])), "mine:pair"
    )
    for found in (named, paired):
        assert torch.equal(found.train.inputs, torch.from_numpy(rows["train_inputs"]))
        assert found.test.targets.tolist() == rows["test_targets"].tolist()
    assert named.ids["site"].tolist() == [0, 1] * 15
    assert not caches()


def test_names_of_classes_may_have_any_length() -> None:
    examples = [(np.full(3, index, np.float32), "abc"[index % 3] * (1 + index % 3)) for index in range(9)]
    found = as_dataset((examples, examples[:3]), "mine:pair")
    assert found.classes == ("a", "bb", "ccc")
    assert found.train.targets.tolist() == [0, 1, 2] * 3


def resized(picture: Any) -> Any:
    return picture.resize((9, 9)) if np.asarray(picture)[0, 0, 0] == Pictures(30).pixels[7, 0, 0, 0] else picture


def broken(picture: Any) -> Any:
    raise FileNotFoundError(2, "No such file", "/nowhere/a.png")


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, r"returns a NoneType; return a fedsim\.data\.Dataset, a training and a test set"),
    "one": (lambda: Pictures(3), "returns a Pictures; return a fedsim"),
    "three": (lambda: (1, 2, 3), "returns a tuple of 3; return"),
    "loaders": (
        lambda: (DataLoader(TensorDataset(torch.ones(4, 2))), DataLoader(TensorDataset(torch.ones(2, 2)))),
        r"its train set is a DataLoader, and fedsim makes the batches; give its .dataset",
    ),
    "iterable": (lambda: (Steps(), Steps()), r"its train set is an iterable data set; give one with __len__"),
    "empty": (lambda: ([], []), "its train set has no example"),
    "random": (
        lambda: pair(transform=transforms.RandomVerticalFlip()),
        r"gives another example \d+ when it is read twice; remove random transforms, .* where self\.training is true",
    ),
    "sizes": (lambda: pair(transform=resized), r"uint8 of shape \(3, 9, 9\) at example \d+, and the first one"),
    "dict": (lambda: ([{"x": 1}] * 3, [{"x": 1}] * 3), "gives a dict as example 0; give a pair"),
    "broken": (lambda: pair(transform=broken), r"cannot give example 0: FileNotFoundError.*/nowhere/a\.png"),
    "scalars": (lambda: ([(1.0, 0)] * 3, [(1.0, 0)] * 3), r"has a number as input of example 0; give a vector"),
    "objects": (lambda: ([({1}, 0)] * 3, [({1}, 0)] * 3), "input of example 0, holds set; give numbers, tensors"),
    "gaps": (
        lambda: ([(np.ones(2) * i, i % 2 * 2) for i in range(6)],) * 2,
        "no training example has the label 1, but labels go up to 2",
    ),
    "channels": (
        lambda: ([(np.full((8, 8, 3), i, np.uint8), i % 2) for i in range(6)],) * 2,
        r"as if channels came last; give \[n, channels, height, width\]",
    ),
    "missing": (lambda: {"train_inputs": np.ones((3, 2))}, "has no array 'train_targets'"),
    "not finite": (
        lambda: numbers(train_inputs=np.full((30, 4), np.nan)),
        "has inputs that are not finite, first at example 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_data_set_is_named_with_what_to_return(case: str) -> None:
    function, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        check_dataset(as_dataset(function(), "mine:pair"))
    assert all(any(folder.iterdir()) for folder in caches())  # nothing half-written


MINE = """
import torch
from my_parts import SCALE
from torch.utils.data import TensorDataset


def load(*, classes: int = 2):
    torch.manual_seed(0)
    return [TensorDataset(torch.randn(40, 6), torch.arange(40) % classes) for _ in range(2)]


def nothing():
    return 3
"""


def test_an_experiment_names_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pairs.py").write_text(MINE)
    (tmp_path / "my_parts.py").write_text("SCALE = 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = make_dataset(DataConfig.model_validate({"name": "my_pairs:load", "classes": 4}))
    assert (found.shape, found.outputs, found.task) == ((6,), 4, "classification")
    assert len(caches()) == 1
    (tmp_path / "my_parts.py").write_text("# what the module imports has changed\nSCALE = 2\n")
    forget_changed(["my_pairs:load"])
    make_dataset(DataConfig.model_validate({"name": "my_pairs:load", "classes": 4}))
    assert len(caches()) == 2
    with pytest.raises(ConfigError, match=r"^\[data\] 'my_pairs:nothing' returns an int; return a fedsim"):
        make_dataset(DataConfig(name="my_pairs:nothing"))


def test_a_data_set_stays_as_it_is() -> None:
    found = as_dataset(numbers(), "mine:pair")
    assert as_dataset(found, "mine:pair") is found
    assert isinstance(found, Dataset)


def test_sets_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "train/emu", "test/cat", "test/emu"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(Pictures(1).pixels[0]).save(tmp_path / name / "0.png")
    train, test = (ImageFolder(str(tmp_path / part)) for part in ("train", "test"))
    assert [train.class_to_idx["emu"], test.class_to_idx["emu"]] == [2, 1]  # which was taken for a dog
    with pytest.raises(ValueError, match="its train set has 3 classes and its test set 2, in which 'dog' differs"):
        as_dataset((train, Subset(test, [0, 1])), "mine:pair")


TIMES = 1.7e9 + np.arange(8.0)  # seconds, which float32 rounds to 128


@pytest.mark.parametrize("kind", ["arrays", "rows", "mixed"])
def test_large_numbers_keep_their_digits(kind: str) -> None:
    content: Any = {"inputs": TIMES[:, None], "targets": np.arange(8) % 2}
    rows: Any = [([time], index % 2) for index, time in enumerate(TIMES.tolist())]
    single = [(np.array([time], np.float32), index % 2) for index, time in enumerate(TIMES)]
    given = {
        "arrays": {f"{part}_{name}": values for part in ("train", "test") for name, values in content.items()},
        "rows": (rows, rows),
        "mixed": (rows, single),
    }[kind]
    found = as_dataset(given, "mine:pair")
    check_dataset(found)
    expected = (TIMES - TIMES.mean()) / TIMES.std()
    assert found.normalise(found.train.inputs)[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    fitted = found.fitted_to(np.arange(8))
    assert fitted.train.inputs.dtype == fitted.test.inputs.dtype == torch.float32


def test_whole_floats_are_classes_where_that_is_declared() -> None:
    classes = np.arange(30) % 3
    given = numbers(train_targets=classes * 1.0, test_targets=classes[:9] * 1.0)
    assert as_dataset(given, "mine:pair", "classification").train.targets.tolist() == classes.tolist()
    with pytest.raises(ValueError, match=r"give class indices as int64: targets\.astype\(int\)"):
        as_dataset(given, "mine:pair")
    with pytest.raises(ValueError, match="do not fit the task 'classification'"):
        as_dataset(numbers(train_targets=classes + 0.5, test_targets=classes[:9] * 1.0), "mine:pair", "classification")


def test_tables_of_pandas_are_arrays_and_alone_are_named() -> None:
    rows = numbers()
    frames = [pd.DataFrame(np.asarray(rows[f"{part}_inputs"])) for part in ("train", "test")]
    labels = [pd.Series(np.asarray(rows[f"{part}_targets"])) for part in ("train", "test")]
    found = as_dataset(tuple(zip(frames, labels, strict=True)), "mine:pair")
    assert found.train.inputs.tolist() == rows["train_inputs"].tolist()
    assert found.test.targets.tolist() == rows["test_targets"].tolist()
    with pytest.raises(ValueError, match=r"its train set is a DataFrame; give \(frame\[features\], frame\[target\]\)"):
        as_dataset(frames, "mine:pair")
