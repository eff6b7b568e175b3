"""The settings in which runs differ."""

from collections.abc import Sequence
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
    varying = [key for key in keys if len({str(each.get(key)) for each in changed}) > 1]
    return [
        {key: _with_path(each.get(key, "-"), written.get(key)) for key in varying}
        for each, written in zip(shown, settings, strict=True)
    ]


def _with_path(shown: Any, written: Any) -> Any:
    """Return a file's content with the path that the settings have, not only its last part."""
    if not isinstance(written, str) or shown == written:
        return shown
    return f"{written} {str(shown).removeprefix(Path(written).name).strip()}"
