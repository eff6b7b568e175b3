"""What a comparison of runs is about."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

from fedsim.errors import ConfigError
from fedsim.results.report.comparing.costs import BYTES, COSTS
from fedsim.results.report.comparing.units import read_amount
from fedsim.results.result import Result

METRICS, ROUNDS = ("accuracy", "loss"), ("last", "best")


@dataclass(frozen=True)
class Question:
    """What a comparison is about.

    Parameters
    ----------
    metric
        ``accuracy`` or ``loss``.
    by
        Dotted setting to group by, such as ``strategy.name``; by default, all settings except the seed.
    at
        The ``last`` evaluated round, or the ``best`` by the clients' mean on their validation data.
    baseline
        Runs to pair with: a strategy or ``SETTING=VALUE``.
    budgets
        Amounts of ``bytes``, training ``passes`` or both at which values are compared; None for the smallest total.
    target
        Mean value of the clients on their test data up to which bytes and passes are counted.

    Raises
    ------
    ConfigError
        If the metric or the round is unknown, or the target is not a value of the metric.
    """

    metric: Literal["accuracy", "loss"] = "accuracy"
    by: str | None = None
    at: Literal["last", "best"] = "last"
    baseline: str | None = None
    budgets: Mapping[str, float | None] = field(default_factory=dict)
    target: float | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (("metric", self.metric, METRICS), ("at", self.at, ROUNDS)):
            if value not in allowed:
                raise ConfigError(f"--{name} {value!r} must be one of {', '.join(allowed)}")
        for name, text in (("by", self.by), ("baseline", self.baseline)):
            if text is not None and not isinstance(text, str):
                raise ConfigError(f"--{name} {text!r} must be a text, such as 'strategy.name'")
        if self.target is not None and (isinstance(self.target, str | bool) or not isinstance(self.target, Real)):
            raise ConfigError(f"--target {self.target!r} must be a number, such as 0.9 for 90 %")
        if self.target is not None and not (0 < self.target <= (1 if self.metric == "accuracy" else math.inf)):
            raise ConfigError(
                f"--target {self.target:g} must be greater than 0, and an accuracy at most 1, such as 0.9 for 90 %"
            )

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is the better one."""
        return self.metric == "accuracy"

    def round_of(self, result: Result) -> int:
        """Return the round of a run that is shown; 0 for the best if no round has a value of every client.

        Raises
        ------
        ConfigError
            If the best is asked for and there are no validation data.
        """
        if self.at == "last":
            return result.evaluated
        if result.of("personalised", self.metric, "validation").empty:
            raise ConfigError(
                f"--at best: {result.folder.path} has no values on validation data, by which the best round is chosen; "
                "use --at last, or run it with partition.validation greater than 0"
            )
        return result.best_round(self.metric) or 0


DEFAULT = Question()


def read_budgets(texts: Iterable[str]) -> dict[str, float | None]:
    """Read budgets such as ``bytes=50MB`` and ``passes=1M``; a name alone stands for the smallest total of any run.

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
            raise ConfigError(f"--budget {text!r} must be of {' or '.join(COSTS)}, such as bytes=50MB or passes=1M")
        try:
            budgets[what] = read_amount(amount, "B" if what == BYTES else "") if equals else None
        except ValueError:
            raise ConfigError(f"--budget {text!r}: {amount!r} must be an amount such as 50MB, 1.5M or 20000") from None
    return budgets
