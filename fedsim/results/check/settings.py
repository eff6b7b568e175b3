"""The settings of runs that an expectation names, and the run that a run is compared with."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedsim.config import Config, as_toml
from fedsim.config.choices import CATALOGUES, is_name
from fedsim.config.config import WITHOUT_EFFECT
from fedsim.config.expectation import Expectation
from fedsim.config.toml import flat, path_of, value_at, without
from fedsim.errors import ConfigError


def matches(config: Config, wanted: Mapping[str, Any]) -> bool:
    """Return whether a config has these values of settings; a list stands for itself, and for any value in it."""
    return all(
        any(setting_of(config, key) == each or is_name(config, key, each) for each in _meant(value))
        for key, value in wanted.items()
    )


def _meant(value: Any) -> list[Any]:
    return [value, *(each for item in value for each in _meant(item))] if isinstance(value, list) else [value]


def setting_of(config: Config, key: str) -> Any:
    """Return the value of a setting, None without one."""
    return value_at(config.model_dump(mode="json"), path_of(key))


def reference_config(
    expectation: Expectation, config: Config, configs: Sequence[Config], tuned: Collection[str] = ()
) -> Config | None:
    """Return the config, if there is one, of the run that a run of this config is compared with.

    Parameters
    ----------
    tuned
        Settings in which it may differ, as each method has its own.

    Raises
    ------
    ConfigError
        If there are several.
    """
    wanted = expectation.other_settings
    free = {*(key.partition(".")[0] for key in wanted), *tuned}
    same = settings_except(config, free)
    found = [each for each in configs if settings_except(each, free) == same and matches(each, wanted)]
    if others := [each for each in found if each != found[0]]:
        names = " and ".join(CATALOGUES["strategies"].label(each.strategy) for each in (found[0], others[0]))
        raise ConfigError(
            f"[[expect]] {wanted_text(expectation)} matches several runs of seed {config.seed}, such as those of "
            f"{names}; name more of their settings"
        )
    return next(iter(found), None)


def settings_except(config: Config, free: Collection[str]) -> dict[str, Any]:
    """Return the settings that have an effect, with dotted keys, except these and those in tables of these names."""
    return without(flat(config.model_dump(exclude=set(WITHOUT_EFFECT))), free)


def wanted_text(expectation: Expectation) -> str:
    """Return the settings of the runs that are compared with, as TOML."""
    return f"of = {{ {', '.join(f'{key} = {as_toml(value)}' for key, value in expectation.other_settings.items())} }}"
