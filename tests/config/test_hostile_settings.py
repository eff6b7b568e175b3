"""Settings that no experiment has, as files, assignments or from Python: one line, at once, and no traceback."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Config, parse_assignment, read_toml
from fedsim.config.experiment_file import read_experiment
from fedsim.config.toml import DEEPEST
from fedsim.errors import ConfigError

VALID: dict[str, Any] = {"rounds": 1, "clients": 2, "partition": {"scheme": "iid"}}
DIGITS = "9" * 5000
VALUES = {
    "digits": (DIGITS, "a number has too many digits; use whole numbers up to 9223372036854775807"),
    "4000 digits": ("9" * 4000, "a number has more than 64 bits"),
    "65 bits": (str(2**64), f"{2**64} has more than 64 bits"),
    "lists": ("[" * 3000 + "]" * 3000, "nested more than 20 deep, and no setting is; remove brackets"),
    "tables": ("{a=" * 3000 + "1" + "}" * 3000, "nested more than 20 deep"),
    "100 lists": ("[" * 100 + "]" * 100, "nested more than 20 deep"),
    "no Unicode": ('"\udcff"', "is not Unicode"),
}


@pytest.mark.parametrize(("value", "message"), VALUES.values(), ids=VALUES)
def test_a_value_that_python_cannot_hold_is_refused_when_it_is_read(value: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_assignment(f"model.hidden={value}")
    path = tmp_path / "study.toml"
    path.write_text(f"rounds = 1\n[model]\nhidden = {value}\n", errors="surrogateescape")
    with pytest.raises(ConfigError, match="not UTF-8" if "\udcff" in value else message):
        read_toml(path)


@pytest.mark.parametrize("text", ["#2", "#2=3", "=", "", "a #=3", "rounds", "[a]=2", "rounds=2\nclients=3", "a=1\nb=2"])
def test_an_assignment_of_no_single_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"KEY=VALUE|is not a TOML value"):
        parse_assignment(text)


def nested(depth: int) -> Any:
    """Return lists in each other."""
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize("value", [nested(DEEPEST + 1), nested(500), 2**70, "\udcff", range(10**12)])
def test_settings_from_python_are_held_to_the_same_limits(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"nested more than|64 bits|not Unicode|1,000,000,000,000 values"):
        read_experiment(VALID | {"model": {"hidden": value}})


def test_settings_that_hold_themselves_are_refused() -> None:
    settings: dict[str, Any] = dict(VALID)
    settings["model"] = settings
    with pytest.raises(ConfigError, match="nested more than"):
        read_experiment(settings)


@pytest.mark.parametrize(("key", "path"), [("sweep", ("seed",)), ("tune", ("local", "lr")), ("sweep", ("sweep",))])
def test_a_number_for_a_table_is_named_whatever_else_is_set(key: str, path: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"{key} = 3: must be a table"):
        read_experiment(VALID | {key: 3}, {path: 3 if path == ("sweep",) else 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 10**9}, r"rounds = 1000000000: must be at most 1000000$"),
        ({"sweep": {"seed": list(range(1000)), "local.lr": list(range(1, 1001))}}, r"\[sweep\] has 1,000,000 comb"),
        ({"engine": {"gpus_per_worker": float("inf")}}, "must be a finite number"),
        ({"expect": [{"metric": "loss", "above": float("nan")}]}, "must be a finite number"),
    ],
)
def test_more_than_a_run_can_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(VALID | settings, "study.toml").runs("study.toml")


def make_socket(path: Path) -> None:
    """Make a socket in the file system."""
    os.chdir(path.parent)  # the name of a socket is at most 108 letters
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "it is a named pipe and not a file"),
    "socket": (make_socket, "it is a socket and not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device and not a file"),
    "random": (lambda path: path.symlink_to("/dev/urandom"), "it is a device and not a file"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "folder": (Path.mkdir, "Is a directory"),
    "huge": (
        lambda path: path.touch() or os.truncate(path, 2**40),
        "has 1,099,511,627,776 bytes, too many for settings",
    ),
}


@pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD)
def test_what_is_no_file_is_not_read_as_settings(
    make: Callable[[Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "study.toml")
    with pytest.raises(ConfigError, match=rf"study.toml (cannot be read: )?{message}"):
        read_toml(tmp_path / "study.toml")
