import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.data import DATA, check_dataset
from fedsim.data.leaf import FEMNIST_CLASSES
from fedsim.federation.data import FederatedData, federated_data_of

SHARED = Path(__file__).parents[3] / "shared/data"
PLAY = """First Citizen:
Before we proceed any further, hear me speak.

All:
Speak,
speak.

First Citizen:
You are all resolved.
"""


def decode(data: Any, tokens: np.ndarray) -> str:
    names = {"newline": "\n", "space": " "}
    return "".join(names.get(data.classes[token], data.classes[token]) for token in tokens)


@pytest.fixture
def play(tmp_path: Path) -> str:
    path = tmp_path / "play.txt"
    path.write_text(PLAY)
    return str(path)


def test_a_play_is_cut_into_each_speakers_characters_and_the_next_ones(play: str) -> None:
    data = DATA["shakespeare"](path=play, length=4)
    check_dataset(data)
    first, second = (data.train.inputs[data.ids["speaker"] == speaker].numpy() for speaker in (0, 1))
    # 68 characters are 16 windows of 4 with a next one; the last tenth, 1, is for the test.
    said = "Before we proceed any further, hear me speak.\nYou are all resolved.\n"
    assert decode(data, first.ravel()) == said[:60]
    assert decode(data, data.test.inputs.numpy().ravel()) == said[60:64]
    assert decode(data, second.ravel()) == "Speak,\nspeak"
    assert decode(data, data.train.targets.numpy()[:2].ravel()) == said[1:9]
    assert data.normalise(data.train.inputs) is data.train.inputs


@pytest.mark.parametrize(
    ("text", "length", "message"),
    [
        ("no speech at all", 4, "has no speech"),
        (PLAY, 0, "length = 0"),
        (PLAY, 40, "length = 40 leaves no speaker of .* 10 examples"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(text: str, length: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        DATA["shakespeare"](path=str(tmp_path / "play.txt"), length=length)


def test_another_text_under_the_published_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text(PLAY)
    with pytest.raises(ValueError, match=r"tinyshakespeare.txt does not have the checksum"):
        DATA["shakespeare"](data_dir=str(tmp_path))


@pytest.mark.skipif(not (SHARED / "tinyshakespeare.txt").is_file(), reason="tinyshakespeare.txt is not there")
def test_the_real_text() -> None:
    data = DATA["shakespeare"](data_dir=str(SHARED))
    check_dataset(data)
    assert len(data.classes) == 65
    assert data.shape == (80,)
    # All but speakers' names, empty lines and what is left over at each speaker's end.
    assert 1_000_000 < 80 * (len(data.train) + len(data.test)) < 1_115_394
    assert decode(data, data.train.inputs[0].numpy()).startswith(
        "Before we proceed any further, hear me speak.\nYou ar"
    )


def write_leaf(folder: Path, users: dict[str, list], part: str, name: str = "all_data_0.json") -> None:
    content = {
        "users": list(users),
        "num_samples": [len(rows) for rows in users.values()],
        "user_data": {user: {"x": [x for x, _ in rows], "y": [y for _, y in rows]} for user, rows in users.items()},
    }
    (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / part / name).write_text(json.dumps(content))


def test_leaf_is_read_from_several_files_with_its_users(tmp_path: Path) -> None:
    write_leaf(tmp_path, {"f02": [([0.0, 1.0], 2), ([0.5, 1.0], 0)]}, "train", "a.json")
    write_leaf(tmp_path, {"f01": [([1.0, 1.0], 1)], "f02": [([0.25, 3.0], 1)]}, "train", "b.json")
    write_leaf(tmp_path, {"f09": [([1.0, 0.0], 2)]}, "test")
    data = DATA["leaf"](path=str(tmp_path))
    check_dataset(data)
    assert data.train.inputs.tolist() == [[0.0, 1.0], [0.5, 1.0], [1.0, 1.0], [0.25, 3.0]]
    assert data.train.targets.tolist() == [2, 0, 1, 1]
    assert data.ids["user"].tolist() == [1, 1, 0, 1]
    assert data.origins == {"user": ("f01", "f02")}
    assert data.test.targets.tolist() == [2]


def test_femnist_has_images_and_62_classes(tmp_path: Path) -> None:
    image = (np.arange(784) / 784).tolist()
    write_leaf(tmp_path, {"f0000_14": [(image, 61), (image, 36)]}, "train")
    write_leaf(tmp_path, {"f0000_14": [(image, 10)]}, "test")
    data = DATA["femnist"](path=str(tmp_path))
    assert data.shape == (1, 28, 28)
    assert data.train.inputs[0, 0, 1, 0] == pytest.approx(28 / 784)
    assert [data.classes[label] for label in (61, 36, 10)] == ["z", "a", "A"]
    assert len(FEMNIST_CLASSES) == 62


def test_leafs_shakespeare_has_one_target_per_example(tmp_path: Path) -> None:
    write_leaf(tmp_path, {"HAMLET": [("abca", "b"), ("bcab", "c")]}, "train")
    write_leaf(tmp_path, {"HAMLET": [("cabd", "a")]}, "test")
    data = DATA["leaf"](path=str(tmp_path), own_tests=False)
    assert data.classes == ("a", "b", "c", "d")
    assert data.train.inputs.tolist() == [[0, 1, 2, 0], [1, 2, 0, 1]]
    assert data.train.targets.tolist() == [1, 2]


def seen_in_training(data: FederatedData) -> int:
    """Return how many of the first client's test targets it trains on, of a text that holds no character twice."""
    train, _, tests = data.split.client(0)
    examples = data.dataset.train
    trained = {*examples.inputs[train].flatten().tolist(), *examples.targets[train].tolist()}
    return sum(target in trained for target in examples.targets[tests].tolist())


def test_clients_of_leafs_shakespeare_are_tested_on_none_of_the_characters_that_they_train_on(
    tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    window = 20
    for user in ("0", "1"):
        spoken = "".join(chr(200 + 160 * int(user) + i) for i in range(160))
        rows = [(spoken[i : i + window], spoken[i + window]) for i in range(140)]
        # LEAF's split_data.py leaves a gap between the parts.
        for part, cut in (("train", rows[:112]), ("test", rows[112 + window - 1 :])):
            write_leaf(tmp_path, {user: cut}, part, f"{user}.json")
    settings: dict[str, Any] = {"clients": 2, "partition": {"scheme": "natural", "validation": 0.0}}
    settings["model"] = {"name": "char-lstm", "hidden": 4, "embedding": 4}
    for own, tested, seen in ((True, 9, 0), (False, 22, 22)):
        data = federated_data_of(tiny(data={"name": "leaf", "path": str(tmp_path), "own_tests": own}, **settings))
        assert data.split.test.sizes.tolist() == [tested] * 2
        assert seen_in_training(data) == seen
        assert len(data.dataset.test) == 2 * 9


def test_users_of_leaf_are_tested_on_their_own_examples_if_all_have_some(tmp_path: Path) -> None:
    rows = [([float(i), 1.0], i % 2) for i in range(6)]
    write_leaf(tmp_path, {"b": rows[:2], "a": rows[2:3]}, "train")
    write_leaf(tmp_path, {"c": rows[5:], "a": rows[3:4], "b": rows[4:5]}, "test")
    data = DATA["leaf"](path=str(tmp_path))
    check_dataset(data)
    assert data.train.inputs[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert data.held_out.tolist() == [False] * 3 + [True] * 2
    assert data.ids["user"].tolist() == [1, 1, 0, 0, 1]
    assert data.origins == {"user": ("a", "b")}
    assert data.mean[0] == 1.0  # of the examples to train on
    assert data.test.inputs[:, 0].tolist() == [5, 3, 4]
    write_leaf(tmp_path, {"c": rows[5:], "a": rows[3:4]}, "test")
    assert not len(DATA["leaf"](path=str(tmp_path)).held_out)


def test_users_may_be_numbers_and_labels_whole_floats_as_fedprox_writes_them(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_leaf(tmp_path, {0: [([0.0, 1.0], 1.0), ([1.0, 2.0], 0.0)], 1: [([2.0, 1.0], 2)]}, part)  # type: ignore[dict-item]
    data = DATA["leaf"](path=str(tmp_path), own_tests=False)
    assert (data.train.targets.tolist(), data.ids["user"].tolist()) == ([1, 0, 2], [0, 0, 1])
    path = tmp_path / "train" / "all_data_0.json"
    path.write_text(path.read_text().replace('"users": [0, 1]', '"users": [0, 0]'))
    with pytest.raises(ValueError, match="it lists a user twice"):
        DATA["leaf"](path=str(tmp_path))


def test_leaf_refuses_files_whose_examples_would_count_twice(tmp_path: Path) -> None:
    rows = [([float(i), 1.0], i % 2) for i in range(4)]
    write_leaf(tmp_path, {"c": rows}, "test")
    # LEAF's own chunks of one sampling are read together.
    write_leaf(tmp_path, {"a": rows[:2]}, "train", "all_data_0_niid_05_keep_0_train_9.json")
    write_leaf(tmp_path, {"b": rows[:2], "a": rows[2:]}, "train", "all_data_1_niid_05_keep_0_train_9.json")
    assert len(DATA["leaf"](path=str(tmp_path)).train) == 6
    for other in (
        "all_data_0_iid_01_05_keep_0_train_9",
        "all_data_0_niid_1_keep_0_train_9",
        "all_data_0_keep_0_train_9",
    ):
        write_leaf(tmp_path, {"0": rows[:3]}, "train", f"{other}.json")
        with pytest.raises(
            ValueError, match=f"train has files of 2 samplings, such as .*{other}.*; leave those of one"
        ):
            DATA["leaf"](path=str(tmp_path))
        (tmp_path / "train" / f"{other}.json").unlink()
    write_leaf(tmp_path, {"z": rows[3:], "b": rows[:2]}, "train", "copy.json")
    with pytest.raises(
        ValueError, match=r"same examples twice, of user 'b' of all_data_1.*json and 'b' of copy\.json;"
    ):
        DATA["leaf"](path=str(tmp_path))


def test_images_of_leaf_are_never_mixed_up(tmp_path: Path) -> None:
    image = np.arange(8 * 8 * 3).reshape(8, 8, 3) / 1.0
    shapes = {(3, 8, 8): "which shape = .* would not turn but mix up", (): "as if channels came last"}
    for part in ("train", "test"):
        write_leaf(tmp_path, {"u": [(image.tolist(), 0), (image.tolist(), 1)]}, part)
    for shape, message in shapes.items():
        with pytest.raises(ValueError, match=message):
            DATA["leaf"](path=str(tmp_path), shape=shape)
    for part in ("train", "test"):
        write_leaf(tmp_path, {"u": [(image[:, :, :1].tolist(), 0), (image[:, :, :1].tolist(), 1)]}, part)
    with pytest.raises(ValueError, match="as if channels came last"):  # which are 8 channels of 8x1 otherwise
        DATA["leaf"](path=str(tmp_path))


def test_the_pages_own_sentences_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    block = re.search(r'```python\n("""my_text.py.*?)```', page, flags=re.DOTALL)
    assert block
    made: dict[str, Any] = {}
    exec(compile(block[1], "my_text.py", "exec"), made)
    rows = [
        f"{source},{rating},{text} words"
        for source, rating, text in [("a", 1, "w"), ("a", -1, "x"), ("b", 0, "y"), ("b", 2, "z")] * 5
    ]
    (tmp_path / "ratings.csv").write_text("\n".join(["source,rating,text", *rows]))
    data = made["sentiment"](path=str(tmp_path / "ratings.csv"), length=3)
    check_dataset(data)
    assert (len(data.train), len(data.test)) == (13, 2)
    assert data.train.targets.tolist() == [label for i, label in enumerate([1, 0, 1] * 5) if i % 10]
    assert [data.vocabulary[token] for token in data.train.inputs[0]] == ["<padding>", "x", "words"]
    assert data.ids["source"].tolist()[:3] == [0, 1, 0]


def tweet(text: str, user: str = "u") -> list[str]:
    return ["2087", "Sat May 16 23:58:44 UTC 2009", "NO_QUERY", user, text, "training"]


def test_leafs_sent140_has_classes_of_sentences_and_a_vocabulary_of_training_words(tmp_path: Path) -> None:
    write_leaf(tmp_path, {"b": [(tweet("Good, good day!"), 1), (tweet("a bad day"), 0)]}, "train", "0.json")
    write_leaf(tmp_path, {"a": [(tweet("so good"), 1)]}, "train", "1.json")
    write_leaf(tmp_path, {"c": [(tweet("A worse day than the last one"), 0)]}, "test")
    data = DATA["leaf"](path=str(tmp_path), length=5, vocabulary=8)
    check_dataset(data)
    assert data.classes == ("0", "1")
    assert data.vocabulary == ("<padding>", "<unknown>", "good", "day", "!", ",", "a", "bad")
    assert data.train.inputs.tolist() == [[2, 5, 2, 3, 4], [0, 0, 6, 7, 3], [0, 0, 0, 1, 2]]
    assert data.train.targets.tolist() == [1, 0, 1]
    assert data.test.inputs.tolist() == [[6, 1, 3, 1, 1]]
    assert data.ids["user"].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(tweet("a"), "b")], "targets of user 'u' must be whole numbers"),
        ([(tweet("a")[:3], 1)], "inputs of user 'u' must be numbers"),
        ([(["1", "2"], 1)], "inputs of user 'u' must be numbers"),
        ([([0.0, 1.0], 0), ([1.0], 1)], "inputs of user 'u' must be numbers, in the same shape"),
        ([([0.0, 1.0], 0.5)], "targets of user 'u' must be whole numbers"),
        ([([0.0], -1)], "must be whole numbers from 0"),
        ([(0.5, 1)], "each must be a list of numbers"),
        ([("face.jpg", 1)], "inputs of user 'u' must be numbers"),
        ([("ab", "c"), ("abc", "d")], r"texts have lengths \[2, 3\]"),
    ],
)
def test_what_is_wrong_with_leafs_rows_is_named(rows: list, message: str, tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_leaf(tmp_path, {"u": rows}, part)
    with pytest.raises(ValueError, match=message):
        DATA["leaf"](path=str(tmp_path))


def test_damaged_and_missing_files_of_leaf_are_named(tmp_path: Path) -> None:
    write_leaf(tmp_path, {"u": [([1.0], 0)]}, "train")
    with pytest.raises(FileNotFoundError, match="test has no JSON file"):
        DATA["leaf"](path=str(tmp_path))
    write_leaf(tmp_path, {"u": [([1.0], 0)]}, "test")
    path = tmp_path / "train" / "all_data_0.json"
    path.write_text(path.read_text().replace('"y": [0]', '"y": [0, 1]'))
    with pytest.raises(ValueError, match=r"all_data_0.json is damaged .*user 'u' has 1 inputs and 2 targets"):
        DATA["leaf"](path=str(tmp_path))
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match=r"all_data_0.json is damaged"):
        DATA["leaf"](path=str(tmp_path))
    path.write_text('{"users": ["u"], "user_data": {}}')
    with pytest.raises(ValueError, match=r"not in LEAF's format \(no 'u'\)"):
        DATA["leaf"](path=str(tmp_path))
    write_leaf(tmp_path, {"u": [([1.0], 0)]}, "train")
    with pytest.raises(ValueError, match=r"inputs of 1 numbers cannot have shape = \[2\]"):
        DATA["leaf"](path=str(tmp_path), shape=(2,))
