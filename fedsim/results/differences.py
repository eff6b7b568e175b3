"""The settings in which runs differ."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.config.toml import flat
from fedsim.results.result import Result


def distinguishing_settings(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return, for each run, the settings in which these runs differ, besides strategy and seed."""
    changed = [result.changed_settings for result in results]
    shown = [result.shown_settings for result in results]
    # The label of a strategy has its settings, but not the content of its files.
    settings = [flat(result.config.model_dump(mode="json")) for result in results]
    keys = dict.fromkeys(
        key
        for each, labelled in zip(changed, settings, strict=True)
        for key, value in each.items()
        if not key.startswith("strategy.") or labelled.get(key) != value
    )
    varying = [key for key in keys if len({str(each.get(key)) for each in changed}) > 1 and not _is_named(key, shown)]
    return [
        {key: _with_path(each.get(key, "-"), written.get(key)) for key in varying}
        for each, written in zip(shown, settings, strict=True)
    ]


def short_key(key: str, keys: Iterable[str]) -> str:
    """Return the last part of a dotted key, the table where that is ``name``, or all of it where another ends alike."""
    return _last(key) if sum(_last(each) == _last(key) for each in keys) <= 1 else key


def _last(key: str) -> str:
    return key.removesuffix(".name").rpartition(".")[2]


def _is_named(key: str, shown: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a key is the source of custom parts of which each name has one, so that the names distinguish."""
    if not key.endswith(".source"):
        return False
    names = [str(each.get(f"{key.removesuffix('source')}name")) for each in shown]
    return len(set(zip(names, (str(each.get(key)) for each in shown), strict=True))) == len(set(names))


def _with_path(shown: Any, written: Any) -> Any:
    """Return a file's content with the path that the settings have, not only its last part."""
    if not isinstance(written, str) or shown == written:
        return shown
    return f"{written} {str(shown).removeprefix(Path(written).name).strip()}"
