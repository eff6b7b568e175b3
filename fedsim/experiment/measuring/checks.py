"""Checks that a run can measure what its config asks for, before it starts."""

from fedsim.alignment.matched import check_symmetries
from fedsim.analysis.mixing.groups import groups_of_texts, named_groups
from fedsim.analysis.mixing.paths import check_path
from fedsim.analysis.suite import MEASURES
from fedsim.errors import ConfigError
from fedsim.federation.federation import Federation


def check_groups(federation: Federation) -> None:
    """Check that every group of ``[barriers]`` has layers.

    Raises
    ------
    ConfigError
        If one matches nothing.
    """
    try:
        named_groups(federation.layers, groups_of_texts(federation.config.barriers.groups))
    except ValueError as error:
        raise ConfigError(f"[barriers] groups: {error}") from error


def check_paths(federation: Federation) -> None:
    """Check that models can be mixed along the paths that ``[barriers]`` names.

    Raises
    ------
    ConfigError
        If one needs adapters of LoRA, and the model has none.
    """
    try:
        for path in federation.config.barriers.path:
            check_path(federation.model(), path)
    except ValueError as error:
        raise ConfigError(f"[barriers] {error}") from error


def check_matching(federation: Federation) -> None:
    """Check that the units of the model can be matched, if ``[barriers] matching`` asks for it.

    Raises
    ------
    ConfigError
        If what the model computes does not say which of its units can change places, or it lacks the experts to match.
    """
    for way in federation.config.barriers.matching:
        try:
            if way != "none":
                check_symmetries(federation.model(), way, federation.calibration())
        except ValueError as error:
            raise ConfigError(f"[barriers] matching: {error}") from error


def check_examples(federation: Federation) -> None:
    """Check that there are enough examples for what ``[barriers] measures`` asks for.

    Raises
    ------
    ConfigError
        If a measure has too few.
    """
    data, settings = federation.data, federation.config.barriers
    available = {"server": len(data.dataset.test), "train": len(data.trained_on)}
    for measure in (MEASURES[name] for name in settings.measures):
        for name in settings.on:
            if (held := available.get(name, measure.least_examples)) < measure.least_examples:
                raise ConfigError(
                    f"[barriers] measures: {measure.name} needs at least {measure.least_examples} examples, and "
                    f'on = "{name}" has {held}; use more data, or leave out {measure.name}'
                )
