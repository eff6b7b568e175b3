"""The answer of a comparison in a sentence, with its uncertainty, and what weakens it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedsim.config.names import canonical
from fedsim.results.report.comparing.best import MAIN_COLUMN, Method, Standing, best_and_ties
from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.gains import Gain
from fedsim.results.report.comparing.lights import Light, lights_of
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.statistics import LEVEL
from fedsim.results.report.comparing.tables import writer_of
from fedsim.shortening import printable

FEW_SETTINGS = 4  # with a sentence each
REFERENCES = ("local", "full", "fedavg")


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
    column = next(each for each in comparison.columns if each.key == MAIN_COLUMN)
    sentences = [_sentence(each, column, comparison.question) for each in standings]
    return Verdict(tuple(sentences), tuple(lights_of(comparison)))


def _sentence(standing: Standing, column: Column, question: Question) -> str:
    """Return the best method of a setting against its reference."""
    write = writer_of(column.kind, question)
    best, where = standing.best, _at(standing.setting)
    if best is None:
        return f"No run has a value{where}."
    reference = _reference(standing, question)
    if reference is None:
        value = best.row.values[MAIN_COLUMN]
        width = f" ± {write(value.half_width)}" if value.has_width else ""
        return f"{best.name} {write(value.mean)}{width}{where} with {_seeds(best.row.group.seeds)}."
    gain = best.gain(reference, column)
    if not gain.seeds:
        values = [write(each.row.values[MAIN_COLUMN].mean) for each in (best, reference)]
        return f"{best.name} {values[0]} against {reference.name} {values[1]}{where}: no run of both is paired."
    head = f"{best.name} {write(gain.own)} against {reference.name} {write(gain.other)}{where}: "
    clients = f"{gain.better} / {gain.equal} / {gain.worse} clients better / equal / worse"
    return f"{head}{_difference(gain, write(gain.difference.mean), write(gain.difference.half_width))}; {clients}."


def _difference(gain: Gain, mean: str, half_width: str) -> str:
    sign = "" if mean.startswith("-") else "+"
    if gain.seeds == 1:
        return f"{sign}{mean} with 1 seed, so no interval"
    is_told_apart = "" if gain.p < LEVEL else "not "
    return f"{sign}{mean} ± {half_width} with {_seeds(gain.seeds)}, {is_told_apart}distinguishable"


def _reference(standing: Standing, question: Question) -> Method | None:
    """Return what the best is compared with: the baseline, local training or plain averaging, else the next best."""
    names = [*([question.baseline] if question.baseline else []), *REFERENCES]
    found = (method for name in names for method in standing.methods if _is_called(method, name))
    first = next(found, None)
    if first is not None and first is not standing.best:
        return first
    return next(iter(standing.ranking[1:]), None)


def _is_called(method: Method, name: str) -> bool:
    run = method.row.group.members[0]
    labels = {run.strategy, run.config.strategy.name} if run.strategy != name else {name}
    return canonical(name, labels) in labels


def _at(setting: Mapping[str, Any]) -> str:
    known = [f"{key.rpartition('.')[2]} {value}" for key, value in setting.items() if str(value) != "-"]
    return f" at {', '.join(known)}" if known else ""


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"
