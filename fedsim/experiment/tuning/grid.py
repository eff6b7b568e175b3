"""What ``[tune]`` asks for: which values of settings are tried with which combination of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.config import Config, as_toml, choices, naming, short_hash
from fedsim.config.changes import as_changes, combinations, with_changes
from fedsim.config.choices import CATALOGUES
from fedsim.config.config import check_count
from fedsim.config.toml import flat, is_within
from fedsim.errors import ConfigError
from fedsim.training.metrics import MAIN, MAINS, OWN_NAME, label

# Other settings change what the clients hold or what is measured, and not how well a method does.
TUNABLE = ("local", "model", "participation", "strategy", "data.flip", "data.crop")


@dataclass(frozen=True)
class Candidate:
    """One combination of values, and the run that judges it.

    Parameters
    ----------
    config
        Resolved.
    stays
        Whether it is a run of the experiment too, if its values are chosen.
    """

    values: Mapping[str, Any]
    config: Config
    stays: bool


@dataclass(frozen=True)
class Tuning:
    """A combination of the sweep without its seed.

    Parameters
    ----------
    label
        The strategy, and the other settings that are swept.
    configs
        Configs of its runs, one per seed, as in the file.
    candidates
        In the order of the lists, at least one.
    metric
        What is best, on validation data.
    at
        In which round: ``last`` or ``best``.
    """

    label: str
    configs: Sequence[Config]
    candidates: Sequence[Candidate]
    metric: str = MAIN
    at: str = "last"

    @property
    def key(self) -> str:
        """A name that depends on the settings as the file has them, and on no seed."""
        return short_hash(naming.changed_settings(choices.resolve(self.configs[0])))

    def chosen(self, values: Mapping[str, Any], source: str) -> list[Config]:
        """Return the resolved configs of all seeds with these values."""
        return [_with_values(config, values, source) for config in self.configs]


def tunings_of(config: Config, source: str) -> list[Tuning]:
    """Return what is to be tuned: an entry per combination of the sweep without its seed.

    Raises
    ------
    ConfigError
        If a setting is unknown, cannot be tuned or is swept too, a list holds a value twice, or there are no
        validation data.
    """
    where = f"{source} [tune]"
    _check_grid(config, where)
    by_setting: dict[str, list[Config]] = {}
    for each in config.runs(source):
        by_setting.setdefault(short_hash(naming.changed_settings(choices.resolve(each))), []).append(each)
    tunings = [
        Tuning(
            _label(configs[0], config.sweep),
            configs,
            _candidates(config, configs, where),
            config.tune.metric,
            config.tune.at,
        )
        for configs in by_setting.values()
    ]
    # After the candidates, which find what is no setting at all.
    _check_choice(config, where)
    if any(each.partition.validation == 0 for tuning in tunings for each in tuning.configs):
        raise ConfigError(f"{where} chooses by validation data; partition.validation = 0 must be greater, such as 0.1")
    return tunings


def _check_grid(config: Config, where: str) -> None:
    """Check that there are lists of values to try, without repetition, and none of a setting that is swept."""
    grid = config.tune.grid
    if not grid:
        raise ConfigError(f'{where} has no setting to choose; give a list of values, such as "local.lr" = [0.01, 0.1]')
    check_count({key: values for key, values in config.sweep.items() if key != "seed"} | grid, where)
    for key, values in grid.items():
        names = [name for each in config.sweep for name in (each, *_settings_of(each, config.sweep[each]))]
        if swept := [each for each in names if is_within(each, [key])]:
            raise ConfigError(f"{where} {key!r}: {swept[0]!r} is in [sweep] too; remove it from one of them")
        if len({as_toml(value) for value in values}) < len(values):
            raise ConfigError(f"{where} {key!r} = {as_toml(values)} holds a value twice; remove one of them")


def _check_choice(config: Config, where: str) -> None:
    """Check that the settings can be tuned, by a metric that is measured."""
    if (metric := config.tune.metric) not in (*MAINS, *config.evaluation.metrics, *config.metric.measured):
        table = "[metric]" if OWN_NAME.fullmatch(metric) else "evaluation.metrics"
        raise ConfigError(f"{where} metric = {metric!r} is not measured; add it to {table}")
    for key in config.tune.grid:
        if not is_within(key, TUNABLE):
            raise ConfigError(
                f"{where} {key!r} cannot be tuned, because it changes what is measured rather than the method; "
                f"tunable: {', '.join(TUNABLE)}"
            )


def _label(config: Config, swept: Mapping[str, Sequence[Any]]) -> str:
    """Return the strategy with its options as in the file, and what else sets it apart from other combinations."""
    config = choices.resolve(config)
    settings = flat(config.model_dump(mode="json"))
    named = dict.fromkeys(key for each in swept for key in _settings_of(each, swept[each]))
    others = [key for key in named if key != "seed" and key.partition(".")[0] != "strategy"]
    texts = [format_settings({key: settings[key]}) for key in others if key in settings]
    return ", ".join([CATALOGUES["strategies"].label(config.strategy), *texts])


def _settings_of(key: str, values: Sequence[Any]) -> list[str]:
    """Return the settings that a list of values sets, which may be whole tables."""
    return [name for value in values for name in flat({key: value})]


def _candidates(config: Config, configs: Sequence[Config], where: str) -> list[Candidate]:
    """Return the runs to choose by; those that are none of the experiment's measure only what they choose by."""
    tune, first = config.tune, configs[0]
    seed = configs[0].seed if tune.seed is None else tune.seed
    rounds = tune.rounds or first.rounds
    changes: dict[str, Any] = {"seed": seed, "rounds": rounds}
    stays = rounds == first.rounds and seed in [each.seed for each in configs]
    if not stays:
        changes |= {"barriers.every": 0, "evaluation.models": ["personalised", "global"]}
    every = combinations(tune.grid)
    return [Candidate(values, _with_values(first, values | changes, where), stays) for values in every]


def _with_values(config: Config, values: Mapping[str, Any], source: str) -> Config:
    settings = with_changes(config.model_dump(exclude_unset=True), as_changes(values), Config)
    return choices.resolve(Config.parse(settings, source))


def describe_tuning(tunings: Sequence[Tuning]) -> str:
    """Return what would be run before the runs, as text."""
    first = tunings[0].candidates[0].config
    count = sum(len(tuning.candidates) for tuning in tunings)
    at = "each run's best round" if tunings[0].at == "best" else "the last round"
    lines = [
        "# tuning",
        f"{count} runs of {first.rounds} rounds with seed {first.seed} before the others, {len(tunings[0].candidates)} "
        "for each combination of the sweep without its seed; the",
        f"values with the best mean validation {label(tunings[0].metric)} of the personalised models in {at} are run:",
        *(format_settings(candidate.values) for candidate in tunings[0].candidates),
    ]
    return "\n".join(lines) + "\n"


def format_settings(values: Mapping[str, Any]) -> str:
    """Return values by setting as a text, such as ``local.lr = 0.1``."""
    return ", ".join(f"{key} = {as_toml(value)}" for key, value in values.items())
