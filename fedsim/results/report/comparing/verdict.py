"""The answer of a comparison in a sentence, with its uncertainty, and what weakens it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsim.results.report.comparing.best import MAIN_COLUMN, Method, Standing, best_and_ties, describe, method_of
from fedsim.results.report.comparing.gains import Gain
from fedsim.results.report.comparing.groups import METHOD
from fedsim.results.report.comparing.lights import Light, lights_of
from fedsim.results.report.comparing.p_values import KEY as P_VALUE
from fedsim.results.report.comparing.pairs import compared_setting, plain_runs, runs_of
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.statistics import LEVEL
from fedsim.results.report.comparing.tables import format_p, signed, writer_of
from fedsim.results.report.comparing.units import how_many
from fedsim.results.result import Result
from fedsim.shortening import printable, with_and
from fedsim.training.metrics import MAIN, label

FEW_SETTINGS = 4  # with a sentence each
NAMED = 3  # methods in a list
REFERENCES = ("local", "full")


@dataclass(frozen=True)
class Verdict:
    """The answer of a comparison.

    Parameters
    ----------
    sentences
        One for each setting, or, of many settings, a summary.
    """

    sentences: tuple[str, ...]
    lights: tuple[Light, ...]

    def __post_init__(self) -> None:
        """Let each text be one line without control characters, wherever it is shown."""
        object.__setattr__(self, "sentences", tuple(map(printable, self.sentences)))
        object.__setattr__(self, "lights", tuple(replace(light, text=printable(light.text)) for light in self.lights))

    @property
    def sentence(self) -> str:
        """All sentences in one text."""
        return " ".join(self.sentences)

    @property
    def lines(self) -> list[str]:
        """The sentences and lights, a line each."""
        return [*self.sentences, *(f"{light.level}: {light.text}" for light in self.lights)]


def verdict_of(comparison: Comparison) -> Verdict:
    """Return which method is best, by how much, how certain that is, and what weakens it."""
    standings = best_and_ties(comparison)
    answers = [_answer(standing, comparison) for standing in standings]
    sentences = [answer.sentence for answer in answers]
    if len(answers) > FEW_SETTINGS:
        sentences = _summary(standings, answers)
    elif len(standings) == 1 and (other := _other_ties(standings[0], answers[0])):
        sentences.append(other)
    lights = sorted(lights_of(comparison, standings), key=lambda light: light.level != "warning")
    return Verdict(tuple(sentences), tuple(lights))


@dataclass(frozen=True)
class _Answer:
    """The sentence about one setting, and the gain and p-value that it reports."""

    sentence: str
    reference: Method | None = None
    gain: Gain | None = None
    p: float = math.nan


def _answer(standing: Standing, comparison: Comparison) -> _Answer:
    """Return the best method of a setting against its reference."""
    question = comparison.question
    column = next(each for each in comparison.columns if each.key == MAIN_COLUMN)
    write, where, of_metric = writer_of(column.kind, question), _at(standing.setting), _of_metric(question)
    best, reference = standing.best, _reference(standing, comparison)
    if best is None:
        return _Answer(f"No run has a value{where}.")
    if reference is None:
        return _Answer(
            f"{of_metric}{best.name} {_alone(best, write)}{where} with {how_many(best.row.group.seeds, 'seed')}."
        )
    gain = best.gain(reference, column)
    if not gain.seeds:
        texts = [f"{each.name} {_alone(each, write)}" for each in (best, reference)]
        no_pair = "not paired, as their partitions, seeds or other settings differ"
        return _Answer(f"{of_metric}{texts[0]} against {texts[1]}{where}: {no_pair}.", reference)
    in_table = _table_p(standing, reference, comparison)
    is_own = math.isnan(in_table)
    p = gain.p if is_own else in_table
    head = f"{of_metric}{best.name} {write(gain.own)} against {reference.name} {write(gain.other)}{where}"
    clients = f"{gain.better} / {gain.equal} / {gain.worse} clients better / equal / worse"
    return _Answer(f"{head}: {_difference(gain, p, write, comparison, is_own=is_own)}; {clients}.", reference, gain, p)


def _alone(method: Method, write: Callable[[float], str]) -> str:
    value = method.row.values[MAIN_COLUMN]
    return write(value.mean) + (f" ± {write(value.half_width)}" if value.has_width else "")


def _of_metric(question: Question) -> str:
    """Return what values are of, unless it is accuracy in the last round."""
    if question.metric == MAIN and question.at == "last":
        return ""
    where = " in the best round" if question.at == "best" else ""
    better = "higher" if question.higher_is_better else "lower"
    return f"{label(question.metric, capital=True)}{where}, {better} is better: "


def _difference(gain: Gain, p: float, write: Callable[[float], str], comparison: Comparison, *, is_own: bool) -> str:
    """Return a difference with its interval and p-value, which is the gain's own one or that of the table."""
    mean = signed(write(gain.difference.mean))
    if gain.seeds == 1:
        return f"{mean} with 1 seed, so no interval"
    is_told_apart = f"{'' if p < LEVEL else 'not '}distinguishable"
    if comparison.question.correct:
        tests = sum(row.values[P_VALUE].is_known for row in comparison.rows)
        correction = "uncorrected" if is_own else f"Holm's correction for {tests} tests"
        is_told_apart += f" (p {'' if p < 0.001 else '= '}{format_p(p)}, {correction})"
    return f"{mean} ± {write(gain.difference.half_width)} with {how_many(gain.seeds, 'seed')}, {is_told_apart}"


def _table_p(standing: Standing, reference: Method, comparison: Comparison) -> float:
    """Return the table's p-value of the best against its reference, corrected if that is asked for.

    It is NaN if the table compares other runs: those with a baseline that is neither of the two, or that is paired in
    another setting than the one in which the methods differ.
    """
    question, results, best = comparison.question, comparison.results, standing.ranking[0]
    if question.baseline is None:
        return reference.row.values[P_VALUE].mean
    if compared_setting(question, results) != compared_setting(replace(question, by=None), results):
        return math.nan
    runs = runs_of(question.baseline, results, question)
    tested = best if _is_of(reference, runs) else reference if _is_of(best, runs) else None
    return math.nan if tested is None else tested.row.values[P_VALUE].mean


def _reference(standing: Standing, comparison: Comparison) -> Method | None:
    """Return what the best is compared with: the baseline, local training or plain averaging, else the next best.

    One that is the best itself is compared with the next best.
    """
    baseline, best = comparison.question.baseline, standing.best
    found = [runs_of(baseline, comparison.results, comparison.question)] if baseline else []
    found += [plain_runs(name, comparison.results) for name in REFERENCES]
    matching = [[method for method in standing.methods if _is_of(method, runs)] for runs in found]
    if baseline and comparison.question.by == METHOD and not matching[0] and best and not _has_any(best, found[0]):
        return method_of(baseline, found[0], comparison)  # of several methods, such as the best at each alpha
    first = next((methods[0] for methods in matching if len(methods) == 1), None)
    if first is not None and first is not best:
        return first
    return next(iter(standing.ranking[1:]), None)


def _has_any(method: Method, runs: Sequence[Result]) -> bool:
    return any(member is run for member in method.row.group.members for run in runs)


def _is_of(method: Method, runs: Sequence[Result]) -> bool:
    return all(any(member is run for run in runs) for member in method.row.group.members)


def _other_ties(standing: Standing, answer: _Answer) -> str | None:
    """Return a sentence about the methods, besides the reference, that are not distinguishable from the best."""
    names = [method.name for method in standing.ties if method is not answer.reference]
    if not names or standing.best is None:
        return None
    shown = names[:NAMED] + ([f"{len(names) - NAMED} more"] if len(names) > NAMED else [])
    return f"Not distinguishable from {standing.best.name} either: {with_and(shown)}."


def _summary(standings: Sequence[Standing], answers: Sequence[_Answer]) -> list[str]:
    """Return how often each method is best, in how many settings that is certain, and where it matters most."""
    bests = Counter(standing.best.name for standing in standings if standing.best is not None)
    counted = [f"{name} in {count}" for name, count in bests.most_common(NAMED)]
    counted += [f"others in {sum(bests.values()) - sum(count for _, count in bests.most_common(NAMED))}"] * (
        len(bests) > NAMED
    )
    certain = sum(answer.p < LEVEL for answer in answers)
    sentences = [
        f"Best of {len(answers)} settings: {', '.join(counted)}; distinguishable from what it is compared with in "
        f"{certain}."
    ]
    known = [(abs(answer.gain.difference.mean), answer.sentence) for answer in answers if answer.gain is not None]
    return [*sentences, f"The largest difference: {max(known)[1]}"] if known else sentences


def _at(setting: Mapping[str, Any]) -> str:
    method = f" for {setting['strategy']}" if "strategy" in setting else ""
    known = [
        describe(key, value, keys=setting) for key, value in setting.items() if key != "strategy" and str(value) != "-"
    ]
    return method + (f" at {', '.join(known)}" if known else "")
