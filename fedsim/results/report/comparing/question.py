"""What a comparison of runs is about."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Literal, Self

from fedsim.errors import ConfigError
from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.costs import BYTES, COSTS, SMOOTH
from fedsim.results.report.comparing.units import read_amount
from fedsim.results.report.comparing.validated import check_validated
from fedsim.results.result import Result
from fedsim.training.metrics import KNOWN, MAIN, is_metric, metric_of, unmeasured

ROUNDS = ("last", "best")
CORRECTIONS = ("holm",)


@dataclass(frozen=True)
class Question:
    """What a comparison is about.

    Parameters
    ----------
    metric
        Name of what is compared; ``accuracy`` is the main metric of runs that have no accuracy.
    by
        Dotted setting to group by, such as ``partition.alpha``, or ``strategy`` for methods with their options; by
        default, all settings except the seed.
    at
        The ``last`` evaluated round, or the ``best`` by the clients' mean on their validation data.
    baseline
        Runs to pair with: a strategy, ``SETTING=VALUE``, or ``best:`` and several strategies.
    budgets
        Amounts of ``bytes``, training ``passes`` or both at which values are compared; None for the smallest total
        of the runs of the same partition.
    target
        Mean value of the clients on their validation data up to which rounds, bytes and passes are counted.
    unfinished
        Whether unfinished runs are compared too, all at the last round that they have in common.
    correct
        Correction of p-values for their number: ``holm``, or None.
    smooth
        Number of evaluations whose mean is compared with the target.

    Raises
    ------
    ConfigError
        If the metric or the round is unknown, the target is not a value of the metric, or ``smooth`` is not a number
        from 1.
    """

    metric: str = MAIN
    by: str | None = None
    at: Literal["last", "best"] = "last"
    baseline: str | None = None
    budgets: Mapping[str, float | None] = field(default_factory=dict)
    target: float | None = None
    unfinished: bool = False
    correct: Literal["holm"] | None = None
    smooth: int = SMOOTH

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not is_metric(self.metric):
            raise ConfigError(f"--metric {self.metric!r} must be one of {KNOWN}")
        if self.correct not in (None, *CORRECTIONS):
            raise ConfigError(f"--correct {self.correct!r} must be {' or '.join(CORRECTIONS)}")
        if isinstance(self.smooth, bool) or not isinstance(self.smooth, int) or self.smooth < 1:
            raise ConfigError(
                f"--smooth {self.smooth!r} must be a whole number of evaluations from 1, such as {SMOOTH}"
            )
        if self.at not in ROUNDS:
            raise ConfigError(f"--at {self.at!r} must be one of {', '.join(ROUNDS)}")
        for name, text in (("by", self.by), ("baseline", self.baseline)):
            if text is not None and not isinstance(text, str):
                raise ConfigError(f"--{name} {text!r} must be a text, such as 'strategy.name'")
        if self.target is not None and (isinstance(self.target, str | bool) or not isinstance(self.target, Real)):
            raise ConfigError(f"--target {self.target!r} must be a number, such as 0.9 for 90 %")
        if self.target is not None and not (0 < self.target <= (1 if self.is_share else math.inf)):
            raise ConfigError(
                f"--target {self.target:g} must be greater than 0, and a share such as accuracy at most 1, such as 0.9 "
                "for 90 %"
            )

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is the better one."""
        return metric_of(self.metric).higher_is_better

    @property
    def is_share(self) -> bool:
        """Whether values are between 0 and 1, and written in percent."""
        return metric_of(self.metric).unit == "share"

    def of(self, results: Sequence[Result]) -> Self:
        """Return the question with the metric that it means for these runs.

        Raises
        ------
        ConfigError
            If the runs do not have one metric in common, have not measured it, or some have not on validation data and
            the best round or a target is asked for.
        """
        meant = {result.meant(self.metric): result for result in results}
        if len(meant) > 1:
            (one, first), (other, second) = list(meant.items())[:2]
            raise ConfigError(
                f"--metric {self.metric}: {first.folder.path} has {one} and {second.folder.path} has {other}; "
                "compare runs of one task, or by loss"
            )
        metric = next(iter(meant), self.metric)
        if results and all(result.of("personalised", metric).empty for result in results):
            measured = {name for result in results for name in result.metrics["metric"].unique()}
            raise ConfigError(f"--metric {metric}: no run has measured it; {unmeasured(metric, measured)}")
        found = replace(self, metric=metric)
        if self.at == "best":
            found._check_best(results)
        if self.target is not None:
            costs.check_target(results, metric)
        return found

    def round_of(self, result: Result) -> int:
        """Return the round of a run that is shown; 0 for the best if no round has a value of every client.

        Raises
        ------
        ConfigError
            If the best is asked for, and it has no values on validation data.
        """
        if self.at == "last":
            return result.evaluated
        self._check_best([result])
        return result.best_round(self.metric) or 0

    def _check_best(self, results: Sequence[Result]) -> None:
        why = "by which the best round is chosen"
        check_validated(results, self.metric, why, "--at best", instead="use --at last")


DEFAULT = Question()


def read_budgets(texts: Iterable[str]) -> dict[str, float | None]:
    """Read budgets such as ``bytes=50MB`` and ``passes=1M``; a name alone stands for the smallest total.

    Raises
    ------
    ConfigError
        If a text is none.
    """
    budgets: dict[str, float | None] = {}
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"--budget {text!r} must be a text, such as bytes=50MB or passes=1M")
        what, equals, amount = (part.strip() for part in text.partition("="))
        if what not in COSTS:
            raise ConfigError(f"--budget {text!r} must be {' or '.join(COSTS)}, such as bytes=50MB or passes=1M")
        try:
            budgets[what] = read_amount(amount, "B" if what == BYTES else "") if equals else None
        except ValueError:
            raise ConfigError(f"--budget {text!r}: {amount!r} must be an amount such as 50MB, 1.5M or 20000") from None
    return budgets
