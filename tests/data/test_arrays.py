from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedsim.data import DATA, check_dataset

arrays = DATA["arrays"]
RNG = np.random.default_rng(0)
IMAGES = {
    "train_inputs": RNG.integers(256, size=(6, 3, 5, 4), dtype=np.uint8),
    "train_targets": np.array([0, 1, 2, 0, 1, 2], dtype=np.int32),
    "test_inputs": RNG.integers(256, size=(2, 3, 5, 4), dtype=np.uint8),
    "test_targets": np.array([1, 0], dtype=np.uint8),
    "train_id_writer": np.array([70, 70, 9, 9, 9, 33]),
}


def write(folder: Path, kind: str = "npz", **changes: Any) -> str:
    content = {name: value for name, value in (IMAGES | changes).items() if value is not None}
    path = folder / f"mine.{kind}"
    if kind == "npz":
        np.savez(path, **content)
    else:
        save_file(content, path)
    return str(path)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_images_are_read_with_their_ids(kind: str, tmp_path: Path) -> None:
    data = arrays(path=write(tmp_path, kind))
    check_dataset(data)
    assert np.array_equal(data.train.inputs.numpy(), IMAGES["train_inputs"])
    assert data.test.targets.tolist() == [1, 0]
    assert (data.name, data.scale, data.classes) == ("mine", 255.0, ("0", "1", "2"))
    assert data.ids["writer"].tolist() == [2, 2, 0, 0, 0, 1]
    assert data.origins["writer"] == tuple(map(str, np.unique(IMAGES["train_id_writer"])))
    assert data.normalise(data.train.inputs).mean((0, 2, 3)).abs().max() < 1e-6


@pytest.mark.parametrize("targets", [IMAGES["train_targets"], np.linspace(0.5, 1, 6)])
def test_examples_may_be_marked_that_clients_are_only_tested_on(targets: np.ndarray, tmp_path: Path) -> None:
    last = np.array([False, True, False, False, True, True])
    tests = {"test_targets": targets[:2]}
    data = arrays(path=write(tmp_path, train_targets=targets, train_held_out=last, **tests))
    check_dataset(data)
    assert data.trainable.tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match=r"has held_out = array.*; give a NumPy array of booleans"):
        check_dataset(arrays(path=write(tmp_path, train_targets=targets, train_held_out=last * 1, **tests)))


def test_series_are_normalised_per_channel_wherever_the_channels_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    series = {part: rng.normal([5.0, -20.0], [1.0, 30.0], (8, 7, 2)) for part in ("train_inputs", "test_inputs")}
    rest = {"train_targets": np.arange(8) % 2, "test_targets": np.arange(8) % 2, "train_id_writer": None}
    own = [(series["train_inputs"][..., k] - series["train_inputs"][..., k].mean()) for k in (0, 1)]
    expected = np.stack([each / each.std() for each in own], 1)
    found = [arrays(path=write(tmp_path, **series, **rest), channels="last")]
    first = {part: values.transpose(0, 2, 1) for part, values in series.items()}
    found.append(arrays(path=write(tmp_path, **first, **rest)))
    for data in found:
        assert data.shape == (2, 7)
        np.testing.assert_allclose(data.normalise(data.train.inputs).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_channels_may_come_last_or_be_left_out(tmp_path: Path) -> None:
    last = {name: IMAGES[name].transpose(0, 2, 3, 1) for name in ("train_inputs", "test_inputs")}
    data = arrays(path=write(tmp_path, **last), channels="last")
    assert np.array_equal(data.train.inputs.numpy(), IMAGES["train_inputs"])
    grey = {name: IMAGES[name][:, 0] for name in ("train_inputs", "test_inputs")}
    assert arrays(path=write(tmp_path, **grey)).shape == (1, 5, 4)


def test_vectors_are_normalised_by_feature_and_tokens_are_left_alone(tmp_path: Path) -> None:
    features = {name: RNG.normal(5, 3, size=(n, 7)) for name, n in (("train_inputs", 6), ("test_inputs", 2))}
    data = arrays(path=write(tmp_path, **features))
    assert np.array_equal(data.train.inputs.numpy(), features["train_inputs"])
    assert data.normalise(data.train.inputs).mean(0).abs().max() < 1e-6
    tokens = {name: RNG.integers(5, size=(n, 4)) for name, n in (("train_inputs", 6), ("test_inputs", 2))}
    tokens |= {name.replace("inputs", "targets"): value for name, value in tokens.items()}
    data = arrays(path=write(tmp_path, **tokens))
    assert data.mean == ()
    assert data.train.targets.shape == (6, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_inputs": None}, "has no array 'test_inputs'; it has"),
        ({"train_targets": np.array([0, 1, 3, 0, 1, 3])}, "no training example has the label 2, but labels go up to 3"),
        ({"train_targets": np.zeros(6)}, r"train_targets is float64 of shape \(6,\); .*int64: targets.astype\(int\)"),
        (
            {"train_targets": np.linspace(0, 1, 6) * np.nan},
            "train_targets is float64 of shape .* not finite, first at example 0",
        ),
        ({"train_targets": np.eye(3, dtype=int)[[0, 1, 2, 0, 1, 2]]}, r"one-hot of shape \[n, 3\]; .*argmax\(1\)"),
        ({"train_targets": np.array([[0], [1]] * 3)}, r"train_targets is int64 of shape \(6, 1\); .*squeeze\(1\)"),
        (
            {"train_targets": np.array([1, 2, 3, 1, 2, 3])},
            "the label 0, .* gaps, subtract 1 if they are counted from 1",
        ),
        ({"train_targets": np.array(list("abcabc"))}, "targets of <U1 to train and of uint8 to test; make them alike"),
        ({"train_id_site": np.array([1, 2, np.nan, 1, 1, 1])}, "train_id_site has no value at example 2"),
        ({"train_id_site": np.arange(6).reshape(3, 2)}, r"train_id_site has shape \(3, 2\); give one value for each"),
        ({"train_targets": np.array([None] * 6)}, "holds objects other than arrays, at train_targets .* dtype=str"),
        ({"train_inputs": np.arange(30).reshape(6, 5) - 9}, "train_inputs is from -9 .* table of numbers as floats"),
        ({"train_inputs": np.zeros((6, 5), dtype=bool)}, r"train_inputs is bool of shape \(6, 5\); it must be bytes"),
        ({"train_inputs": np.zeros((6, 8, 8, 3))}, r"set \[data\] channels = 'last', else 'first'"),
        ({"train_targets": np.array([0, 1, -2, 0, 1, 2])}, "train_targets is from -2 to 2; it must be from 0"),
        ({"train_targets": np.array([0, 1, 2, 0, 1, 2**40])}, "it must be from 0 to 999999"),
        ({"train_inputs": np.zeros((6, 5, 4, 3), dtype=np.uint8)}, r"set \[data\] channels = 'last'"),
        ({"train_inputs": np.zeros(6, dtype=np.uint8)}, r"train_inputs has shape \(6,\)"),
        ({"train_inputs": np.zeros((6, 2), dtype=np.uint8)}, "images have 3 or 4 dimensions"),
        (
            {"test_inputs": IMAGES["test_inputs"][:0], "test_targets": np.zeros(0, int)},
            "it needs at least one example of each",
        ),
        (
            {"train_targets": np.array([b"\xff", b"a"] * 3), "test_targets": np.array([b"a", b"a"])},
            "train_targets has bytes that are not UTF-8; save it as",
        ),
        ({"train_targets": np.full((6, 4), -100)}, "all train targets are -100, which counts as no target"),
        ({"test_inputs": np.array(["a", "b"], dtype=object)}, "damaged or holds objects"),
    ],
)
def test_what_is_wrong_with_the_arrays_is_named(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        arrays(path=write(tmp_path, **changes))


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_truncated_file_and_one_of_another_kind_are_named(kind: str, tmp_path: Path) -> None:
    path = Path(write(tmp_path, kind))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"mine.{kind} is damaged"):
        arrays(path=str(path))
    with pytest.raises(ValueError, match=r"ends in '.csv'"):
        arrays(path=str(path.rename(tmp_path / "mine.csv")))


def test_a_folder_of_npy_files_is_read_too(tmp_path: Path) -> None:
    for name, values in IMAGES.items():
        np.save(tmp_path / f"{name}.npy", values)
    data = arrays(path=str(tmp_path))
    assert np.array_equal(data.train.inputs.numpy(), IMAGES["train_inputs"])
    assert data.ids["writer"].tolist() == [2, 2, 0, 0, 0, 1]


@pytest.mark.parametrize("kind", ["U", "S"])
def test_names_of_classes_become_indices_in_their_order_or_in_the_given_one(kind: str, tmp_path: Path) -> None:
    train, test = np.array(["dog", "cat", "emu"] * 2), np.array(["emu", "cat"])
    path = write(tmp_path, train_targets=train.astype(kind), test_targets=test.astype(kind))
    data = arrays(path=path)
    assert data.classes == ("cat", "dog", "emu")
    assert data.train.targets.tolist() == [1, 0, 2] * 2
    assert arrays(path=path, classes=("emu", "dog", "cat")).test.targets.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"train_targets has the class 'dog'; known are: emu, cat"):
        arrays(path=path, classes=("emu", "cat"))


WORDS = {"train_inputs": RNG.integers(200, size=(40, 9)), "test_inputs": RNG.integers(200, size=(10, 9))}
WORDS["test_inputs"][0, 0] = 199


def test_classes_of_sentences_and_their_vocabulary_are_two_things(tmp_path: Path) -> None:
    labels = {"train_targets": np.arange(40) % 3, "test_targets": np.arange(10) % 3}
    data = arrays(path=write(tmp_path, train_id_writer=None, **WORDS, **labels))
    check_dataset(data)
    assert (len(data.classes), data.tokens) == (3, 200)
    path = write(tmp_path, train_id_writer=None, **WORDS, **labels)
    assert arrays(path=path, vocabulary=500).tokens == 500
    with pytest.raises(ValueError, match="has the token 199, and vocabulary = 100 must be larger"):
        arrays(path=path, vocabulary=100)
    # Targets [n] may be the tokens that follow the sentences.
    data = arrays(path=path, targets="tokens")
    assert (len(data.classes), data.tokens) == (200, 200)


@pytest.mark.parametrize("padded", [False, True])
def test_next_tokens_are_of_the_vocabulary_and_tags_are_not(padded: bool, tmp_path: Path) -> None:
    follow = {name.replace("inputs", "targets"): np.roll(values, -1, axis=1) for name, values in WORDS.items()}
    tags = {name: values % 4 for name, values in follow.items()}
    for targets, classes in ((follow, 200), (tags, 4)):
        if padded:
            for values in targets.values():
                values[::2, 5:] = -100
        data = arrays(path=write(tmp_path, train_id_writer=None, **WORDS, **targets))
        check_dataset(data)
        assert (len(data.classes), data.tokens) == (classes, 200)


def test_labels_without_examples_may_be_named(tmp_path: Path) -> None:
    changes = {"train_targets": np.array([0, 1, 3, 0, 1, 3])}
    assert len(arrays(path=write(tmp_path, **changes), classes=("a", "b", "c", "d")).classes) == 4
