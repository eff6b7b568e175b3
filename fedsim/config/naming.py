"""Names of runs and partitions, from the settings that differ from their defaults."""

from collections.abc import Mapping
from typing import Any

from fedsim.config.catalogue import Catalogue
from fedsim.config.choices import CATALOGUES, custom_names
from fedsim.config.config import WITHOUT_EFFECT, Config
from fedsim.config.content import in_name
from fedsim.config.records import Choice
from fedsim.config.toml import short_hash

# The former default of ``barriers.on``. Runs that measure there keep their names, and the new default names others, so
# that no run takes one that measured less for itself.
NAMELESS_ON = ("server",)


def changed_settings(config: Config) -> dict[str, Any]:
    """Return the settings that differ from their defaults, less those that do not change a run's numbers.

    A run is named by them, so that a new setting with a default never renames an old run. The seed is in the name by
    itself; the engine, the checkpoints, what is expected and the place of the data change nothing. The user's files,
    which an option names or in which a custom part is written, count by their content and not by their path: once one
    is changed, it is another run.
    """
    return _changed(config, reads=True)


def recorded_settings(config: Config) -> dict[str, Any]:
    """Return what `changed_settings` does as far as a config tells it: nothing that it names is imported or read.

    Custom parts have all options that are written, and files their path in place of their content.
    """
    return _changed(config, reads=False)


def _changed(config: Config, *, reads: bool) -> dict[str, Any]:
    changed, custom = _written(config), custom_names(config)
    for catalogue in CATALOGUES.values():
        choice = getattr(config, catalogue.table)
        is_known = reads or catalogue.table not in custom
        options = catalogue.options(choice, exclude_defaults=True) if is_known else choice.options
        table = _table(catalogue, choice, changed.pop(catalogue.table, {}), options)
        if reads:
            table |= in_name(catalogue, choice)
        if table:
            changed[catalogue.table] = table
    return changed


def _written(config: Config) -> dict[str, Any]:
    """Return the settings of a run's name that differ from their defaults, as they are written."""
    unnamed = {"seed", "sweep", "tune", *WITHOUT_EFFECT}
    written = config.model_dump(mode="json", exclude_defaults=True, exclude=unnamed)
    barriers = dict(written.pop("barriers", {}))
    if config.barriers.on == NAMELESS_ON:
        barriers.pop("on", None)
    elif config.barriers.every:
        barriers["on"] = list(config.barriers.on)
    return written | ({"barriers": barriers} if barriers else {})


def _table(
    catalogue: Catalogue, choice: Choice, written: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fixed settings of a choice and its options, less the place of the data."""
    fixed = {key: value for key, value in written.items() if key in type(choice).model_fields}
    table = fixed | dict(options)
    if getattr(choice, catalogue.key) in catalogue.entries:
        table.pop("data_dir", None)
    return table


def run_name(config: Config) -> str:
    """Return the name of a run's folder: a hash of the changed settings, and the seed."""
    return f"{short_hash(changed_settings(config))}-s{config.seed}"


def partition_name(config: Config, changed: Mapping[str, Any] | None = None) -> str:
    """Return the name of what a run's clients hold: equal for runs that differ in model, training or strategy only.

    Parameters
    ----------
    changed
        What the run was named by, if it has run: files may have changed since.
    """
    changed = changed_settings(config) if changed is None else changed
    settings = {key: value for key, value in changed.items() if key in ("clients", "data", "partition", "features")}
    if "data" in settings:
        settings["data"] = {key: value for key, value in settings["data"].items() if key not in ("flip", "crop")}
    return f"partition-{short_hash(settings)}-s{config.seed}"
