"""Arguments that several commands have, and how they are read."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedsim.cli import completion
from fedsim.config.assignments import parse_assignment, parse_assignments
from fedsim.config.choices import CATALOGUES
from fedsim.config.experiment_file import Experiment, read_experiment
from fedsim.errors import ConfigError
from fedsim.reading import check_file

LONGEST_NUMBER = 20  # digits
ExperimentPath = Annotated[
    Path,
    typer.Argument(
        metavar="EXPERIMENT.toml", help="File with the experiment's settings.", autocompletion=completion.experiments
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, for instance local.lr=0.1 or strategy.name=FedPer. Can be repeated.",
        autocompletion=completion.settings,
    ),
]
RunPaths = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Folders of runs or of experiments.", autocompletion=completion.run_folders),
]
Unfinished = Annotated[
    bool,
    typer.Option(
        "--unfinished",
        help="Compare unfinished runs too, all at the last round that they have in common (default: leave them out).",
    ),
]
ModelName = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Model of the checkpoints; see 'fedsim list models'.", autocompletion=completion.models
    ),
]
DataName = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Data set to evaluate on; see 'fedsim list data'.", autocompletion=completion.data
    ),
]
ModelSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting of the model, the data, the device or the seed, for instance model.width=16. Can be "
        "repeated.",
        autocompletion=completion.settings,
    ),
]
Examples = Annotated[
    int | None, typer.Option(metavar="N", help="Number of examples, stratified by class (default: up to 1000).")
]


def changes_of(model: str, data: str, seed: int, settings: Sequence[str] | None) -> dict[tuple[str, ...], Any]:
    """Return the settings that a command about checkpoints changes, by their place.

    Raises
    ------
    ConfigError
        If a setting cannot be read, or the model or data set is unknown.
    """
    changes: dict[tuple[str, ...], Any] = {("seed",): seed} | dict(parse_assignment(text) for text in settings or [])
    CATALOGUES["models"].check_name(model)
    CATALOGUES["data"].check_name(data)
    return changes


def experiment_of(path: Path, settings: Sequence[str] | None, more: Sequence[str] = ()) -> Experiment:
    """Read an experiment's settings, changed as the command line says.

    Raises
    ------
    ConfigError
        If a setting is unknown or wrong.
    """
    changes, as_texts = parse_assignments([*(settings or []), *more])
    return read_experiment(path, changes, as_texts=as_texts)


def check_here() -> None:
    """Check that the current folder exists: where it does not, torch's libraries end the process.

    Raises
    ------
    ConfigError
        If it was removed.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current folder was removed; change to another one") from None


def check_folder(folder: Path | None, option: str) -> None:
    """Check, before any work, that no file is where a folder is to be made.

    Raises
    ------
    ConfigError
        If one is.
    """
    for place in (folder, *folder.parents) if folder else ():
        if place.is_file():
            raise ConfigError(f"folder {place} cannot be written (it is a file); give another with {option}")


def check_files(files: Mapping[str, Path | None]) -> None:
    """Check, before any work, that options name different files, and no folder, device or pipe.

    Raises
    ------
    ConfigError
        If one names another thing than a file, or two name one file.
    """
    seen: dict[str, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        if path.is_dir():
            raise ConfigError(f"{option} {path} is a folder; give a file")
        check_folder(path.parent, option)
        try:
            check_file(path)
        except FileNotFoundError:
            pass  # which is to be made
        except OSError as error:
            raise ConfigError(f"{option} {path} cannot be written: {error.strerror}; give a file") from error
        if (first := seen.setdefault(os.path.realpath(path), option)) != option:
            raise ConfigError(f"{first} and {option} are both {path}; give two files")


def numbers_of(text: str | None, option: str) -> list[float] | None:
    """Read numbers with commas between them.

    Raises
    ------
    ConfigError
        If one is no number.
    """
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be numbers with commas between them, such as 0,0.5,1") from None


def round_of(text: str) -> int | Literal["last", "best"]:
    """Read a round: its number, ``last`` or ``best``.

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    match text:
        case "last" | "best":
            return text
        case _ if text.isdecimal() and len(text) < LONGEST_NUMBER:
            return int(text)
    raise ConfigError(f"--round {text!r} must be 'best', 'last' or the number of a round")
