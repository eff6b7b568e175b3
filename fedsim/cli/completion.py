"""What a shell offers for arguments that it cannot know: run folders, settings with their values, and names."""

from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import BaseModel

from fedsim.config.choices import CATALOGUES
from fedsim.config.config import Config
from fedsim.config.described import described_tables
from fedsim.training.metrics import SELECTING

BY_SETTING = {f"{catalogue.table}.{catalogue.key}": kind for kind, catalogue in CATALOGUES.items()}


def run_folders(incomplete: str) -> list[str]:
    """Return folders that are a run's or hold some, at most two levels deeper."""
    return [text for path, text in _inside(incomplete) if path.is_dir() and _holds_runs(path)]


def _holds_runs(folder: Path) -> bool:
    return any(any(folder.glob(f"{deeper}config.toml")) for deeper in ("", "*/", "*/*/"))


def experiments(incomplete: str) -> list[str]:
    """Return files of experiments, and folders that hold some."""
    return [
        text + "/" * path.is_dir()
        for path, text in _inside(incomplete)
        if path.suffix == ".toml" or (path.is_dir() and any(path.glob("*.toml")))
    ]


def _inside(incomplete: str) -> list[tuple[Path, str]]:
    """Return what the last folder that is typed holds, with the text that would be typed."""
    typed = "".join(incomplete.rpartition("/")[:2])
    try:
        inside = sorted(Path(typed or ".").iterdir())
    except OSError:
        return []
    found = [(path, f"{typed}{path.name}") for path in inside]
    return [(path, text) for path, text in found if text.startswith(incomplete)]


def settings(incomplete: str) -> list[str]:
    """Return settings as ``KEY=``, or with the names that the value may be."""
    key, equals, _ = incomplete.partition("=")
    if equals:
        names = CATALOGUES[BY_SETTING[key]].all_names if key in BY_SETTING else []
        return [text for name in names if (text := f"{key}={name}").startswith(incomplete)]
    return [f"{each}=" for each in _keys(Config) if each.startswith(incomplete)]


def _keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in table.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def strategies(incomplete: str) -> list[str]:
    """Return names of strategies."""
    return [name for name in CATALOGUES["strategies"].all_names if name.startswith(incomplete)]


def swept_settings(incomplete: str) -> list[str]:
    """Return settings by which runs can be grouped."""
    return [each for each in _keys(Config) if each.startswith(incomplete)]


def metrics(incomplete: str) -> list[str]:
    """Return names of metrics."""
    return [name for name in SELECTING if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Return names of models."""
    return [name for name in CATALOGUES["models"].all_names if name.startswith(incomplete)]


def data(incomplete: str) -> list[str]:
    """Return names of data sets."""
    return [name for name in CATALOGUES["data"].all_names if name.startswith(incomplete)]


def names_of_kind(ctx: click.Context, incomplete: str) -> list[str]:
    """Return the names of the kind that is on the command line before; of settings, the tables and keys."""
    if ctx.params.get("kind") == "settings":
        return [each for each in (*described_tables(), *_keys(Config)) if each.startswith(incomplete)]
    catalogue = CATALOGUES.get(ctx.params.get("kind", ""))
    return [name for name in catalogue.all_names if name.startswith(incomplete)] if catalogue else []
