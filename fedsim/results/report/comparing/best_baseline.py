"""The best of several methods as a baseline, chosen by validation data in each setting by itself."""

import json
import math
from collections.abc import Collection, Sequence

from fedsim.config.toml import without
from fedsim.errors import ConfigError
from fedsim.results.differences import distinguishing_settings, short_key
from fedsim.results.report.comparing.groups import Group, registered_label
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.validated import check_validated
from fedsim.results.result import Result


def best_on_validation(runs: Sequence[Result], question: Question, tuned: Collection[str]) -> list[Result]:
    """Return the runs of the method that is best in each setting, by the clients' mean on their validation data.

    It is the mean over the seeds that all methods have in the setting, in the round that the question asks for; of
    equal methods the first is chosen.

    Parameters
    ----------
    tuned
        Settings that belong to a method.

    Raises
    ------
    ConfigError
        If a run has no validation data, methods share no seed, or no method has a value of every client.
    """
    by_setting: dict[str, dict[str, list[Result]]] = {}
    for run in runs:
        by_setting.setdefault(_setting(run, tuned), {}).setdefault(registered_label(run), []).append(run)
    return [run for methods in by_setting.values() for run in _best(methods, question)]


def describe_choice(chosen: Sequence[Result], tuned: Collection[str]) -> str:
    """Return which method was chosen in which setting, such as ``FedPer at alpha 0.1, LG-FedAvg at alpha 10``."""
    first = list({_setting(run, tuned): run for run in reversed(chosen)}.values())[::-1]
    texts = []
    for run, settings in zip(first, distinguishing_settings(first), strict=True):
        keys = [key for key in settings if key not in tuned]
        known = [f"{short_key(key, keys)} {settings[key]}" for key in keys]
        texts.append(f"{run.strategy} at {', '.join(known)}" if known else run.strategy)
    return ", ".join(texts)


def _setting(run: Result, tuned: Collection[str]) -> str:
    """Return what methods that are compared have in common, besides the seed."""
    return json.dumps(without(run.changed_settings, ("seed", "strategy", *tuned)), sort_keys=True)


def _best(methods: dict[str, list[Result]], question: Question) -> list[Result]:
    common = set.intersection(*({run.config.seed for run in runs} for runs in methods.values()))
    if not common:
        raise ConfigError(
            f"--baseline {question.baseline!r}: {' and '.join(methods)} have no seed in common in a setting; name one "
            "method, or run them with the same seeds"
        )
    compared = {name: [run for run in runs if run.config.seed in common] for name, runs in methods.items()}
    option, why = f"--baseline {question.baseline!r}", "by which the best is chosen"
    every = [run for runs in compared.values() for run in runs]
    check_validated(every, question.metric, why, option, instead="name one method")
    sign, values = 1 if question.higher_is_better else -1, dict[str, float]()
    for name, runs in compared.items():
        value = Group("", {}, runs).mean(lambda run: _mean(run, question)).mean
        if not math.isnan(value):
            values[name] = sign * value
    if not values:
        first = next(iter(methods.values()))[0]
        raise ConfigError(
            f"--baseline {question.baseline!r}: no method has validation values of all clients, such as "
            f"{first.folder.path}; name one method"
        )
    return methods[max(values, key=lambda name: values[name])]


def _mean(run: Result, question: Question) -> float:
    values = run.by_client("personalised", question.metric, split="validation", server_round=question.round_of(run))
    return float(values.mean(skipna=False)) if len(values) else math.nan
