"""The expectations of an experiment, as written in its file and tested by ``fedsim check``."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fedsim.analysis.mixing.names import FACTORS, PathName
from fedsim.analysis.suite import MeasureName
from fedsim.config.records import Table
from fedsim.training.metrics import be_a_metric

# Keys that define the value; any other key of ``of`` is a setting of another run.
KINDS = ("barrier", "metric", "measure", "setting")
VALUE_KEYS = (
    *(*KINDS, "column", "group", "against", "t", "data", "matching", "path", "model", "server"),
    *("split", "round", "reduce"),
)
# The kinds of value that each key applies to.
BELONGS = {
    **dict.fromkeys(("round", "reduce"), ("barrier", "metric", "measure")),
    **dict.fromkeys(("group", "against", "t", "data", "matching"), ("barrier", "measure")),
    **dict.fromkeys(("server", "split"), ("metric",)),
    "path": ("barrier",),
    "model": ("metric", "measure"),
}
# How the units of models are aligned before the models are measured.
MatchedBy = Literal[
    "none",
    "weights",
    "c2m3",
    "activations",
    "head-rotations",
    "rotations",
    "invertible",
    "gate",
    "gram",
    "units",
    "sinkhorn",
]
Verdict = Literal["ok", "FAILED", "undecided"]
GROUPS = "groups"  # what the points of a rank correlation are, if they are not runs


class Expectation(Table):
    """``[[expect]]``: a value that is measured in each run, and a rule for it.

    Parameters
    ----------
    barrier
        Column of the barriers' table, such as ``loss_mean_ends``. One of ``barrier``, ``metric``, ``measure`` and
        ``setting`` says what is expected.
    metric
        Name of a metric, such as ``accuracy`` or ``loss``.
    measure
        A table of the analysis, such as ``connectivity``. Rows of the average alone count only with
        ``model = "average"``; rows of random directions never count, nor do rows of ``matching`` for the first model
        of a round, which never moves. ``products``, which needs no setting, has the ``aggregation_error`` of LoRA's
        factors.
    column
        A column of that table, such as ``ratio``.
    setting
        A setting of the run, such as ``local.lr``, tuned or not. A value that is no number counts by its position in
        the list that ``where`` has of this setting, in which values of equal rank are a list of their own.
    group
        Name of a group, or a pattern such as ``shallow:*``; ``layers`` is every single layer. Or a setting of the run
        that has the name or pattern, such as ``strategy.shared``. By default ``full``, or all rows of a table that has
        no such row.
    against
        What models are mixed with: their ``average``, or each other (``pairs``). For measures of pairs only, such as
        ``cka``, pairs are used.
    t
        Interpolation coefficient: by default 1 against the average and 1/2 for pairs and for features.
    model
        Model of a metric, ``personalised`` or ``global``; of a measure, ``average`` for the rows of the average alone.
    server
        Whether a metric is that on the server's data rather than on the clients' own.
    split
        Data of a metric: ``test``, ``validation``, or a perturbation of the server's test data, such as ``fgsm:0.1``.
    data
        Data of a barrier or measure: ``server``, ``train`` or ``clients``.
    matching
        How the models were matched before, as in ``[barriers] matching``. It has no effect on ``cka``, ``similarity``
        and ``criticality``, nor on ``spectra`` except of the average, which do not depend on the order of units.
    path
        The path along which a barrier was measured: ``factors``, ``product`` or ``aligned``.
    round
        A number, the ``last`` one measured, or ``all``.
    reduce
        How the values of several groups, bases, clients and rounds are combined.
    above
        Lower bound.
    below
        Upper bound.
    within
        Bound of the absolute value.
    where
        Values of settings, or lists of them, of the runs that this is expected of; by default all runs.
    of
        What the value is compared with: changes of the above, measured in the same run, or changes of settings,
        measured in the run of the same seed that has these and is equal in all other tables. Another kind of value,
        such as a ``barrier`` to compare a ``metric`` with, starts without the keys that do not apply to it.
    compare
        How it is compared with that: by the ``difference``, by the ``ratio``, or by the ``rank-correlation``
        (Spearman's, with average ranks for ties) over several points in each seed.
    over
        What these points are: the runs that differ only in a table or setting, such as ``strategy`` or
        ``partition.alpha``; or in each run its ``groups``, by default every single layer.
    """

    barrier: str | None = None
    metric: Annotated[str, AfterValidator(be_a_metric)] | None = None
    measure: Literal[MeasureName, "matching", "products"] | None = None
    column: str | None = None
    setting: str | None = None
    group: str = "full"
    against: Literal["average", "pairs"] = "average"
    t: Annotated[float, Field(ge=0, le=1)] | None = None
    data: Literal["server", "train", "clients"] = "server"
    matching: MatchedBy = "none"
    path: PathName = FACTORS
    model: str = "personalised"
    server: bool = False
    split: str = "test"
    round: Annotated[int, Field(ge=1)] | Literal["last", "all"] = "last"
    reduce: Literal["mean", "max", "min"] = "mean"
    above: float | None = None
    below: float | None = None
    within: Annotated[float, Field(gt=0)] | None = None
    where: dict[str, Any] = Field({})
    of: dict[str, Any] = Field({})
    compare: Literal["difference", "ratio", "rank-correlation"] = "difference"
    over: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _each_layer_is_a_point(cls, settings: Any) -> Any:
        is_over_groups = isinstance(settings, dict) and settings.get("over") == GROUPS
        return {"group": "layers"} | settings if is_over_groups else settings

    @model_validator(mode="after")
    def _one_value_and_a_rule(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError("must have either barrier or metric or measure or setting, as the value that is expected")
        if (self.measure is None) != (self.column is None):
            raise ValueError("measure and column go together: a table, and which of its columns")
        if self.above is None and self.below is None and self.within is None:
            raise ValueError("must have a rule: above, below or within")
        if self.region[0] > self.region[1]:
            raise ValueError(f"{self.rule()} cannot be met by any value; change a bound")
        if self.compare == "ratio" and not self.of:
            raise ValueError("compare = 'ratio' needs of, which the value is divided by")
        if message := self._no_correlation() or self._without_effect():
            raise ValueError(message)
        _ = self.reference  # what it is compared with is measurable too
        return self

    def _no_correlation(self) -> str | None:
        """Return what is wrong with a rank correlation, if something is."""
        if not self.is_correlation:
            return None if self.over is None else "over needs compare = 'rank-correlation'; add it, or leave over out"
        if self.over is None:
            return "compare = 'rank-correlation' needs over: 'groups', or what the runs differ in, such as 'strategy'"
        if not self.of:
            return "compare = 'rank-correlation' needs of, which the value is correlated with"
        if self.region[0] > 1 or self.region[1] < -1:
            return f"{self.rule()} cannot be met by a rank correlation, which is from -1 to 1; change a bound"
        if self.over == GROUPS and (others := {self.kind, self._other_kind} - {"barrier", "measure"}):
            return f"over = 'groups' needs a barrier or a measure, and so does of: a {min(others)} is of no group"
        return None

    def _without_effect(self) -> str | None:
        """Return what is wrong with a key that has no effect on the value, if there is one."""
        for key, kinds in BELONGS.items():
            value = getattr(self, key)
            if self.kind not in kinds and value != type(self).model_fields[key].default:
                return f"{key} = {value!r} has no effect on a {self.kind}, only on a {' or '.join(kinds)}; leave it out"
        if self.measure and self.model not in ("average", type(self).model_fields["model"].default):
            return f"model = {self.model!r} has no effect on a measure; use 'average' or leave it out"
        for key in ("against", "t", "data", "matching", "model") if self.measure == "products" else ():
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                return f"{key} = {value!r} has no effect on measure = 'products'; leave it out"
        if self.measure == "matching" and self.matching == "none":
            return "measure = 'matching' needs a matching that is not 'none'"
        return None

    @property
    def kind(self) -> str:
        """Which of `KINDS` the value is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def _other_kind(self) -> str:
        return next((kind for kind in KINDS if kind in self.of), self.kind)

    @property
    def is_correlation(self) -> bool:
        """Whether several points in each seed are ranked."""
        return self.compare == "rank-correlation"

    @property
    def reference(self) -> Self | None:
        """The expectation for the value to compare with; None without ``of``."""
        changes = {key: value for key, value in self.of.items() if key in VALUE_KEYS}
        kept = self.model_dump(exclude_unset=True, exclude={"of", "compare", "over"})
        if self._other_kind != self.kind:
            unapplied = (key for key, kinds in BELONGS.items() if self._other_kind not in kinds)
            unused = {*KINDS, "column", "model", *unapplied}
            kept = {key: value for key, value in kept.items() if key not in unused}
        return type(self).model_validate(kept | changes) if self.of else None

    @property
    def other_settings(self) -> dict[str, Any]:
        """The settings of the run in which the reference is measured; empty if it is the same run."""
        return {key: value for key, value in self.of.items() if key not in VALUE_KEYS}

    @property
    def names_group(self) -> bool:
        """Whether a group is given."""
        return "group" in self.model_fields_set

    def what(self) -> str:
        """Describe the value in words."""
        if self.setting:
            text = self.setting
        elif self.metric:
            split = "" if self.split == "test" else f" on {self.split} data"
            text = f"{self.model} {self.metric}{' on the server' if self.server else ''}{split}"
        else:
            t = "" if self.t is None else f" at t = {self.t:g}"
            data = "" if self.data == "server" else f" on {self.data} data"
            against = "" if self.against == "average" else " of pairs"
            matched = "" if self.matching == "none" else f" after matching by {self.matching}"
            if self.measure:
                group = f", {self.group}" if self.names_group else ""
                average = " of the average" if self.model == "average" else ""
                text = f"{self.column} of {self.measure}{average}{group}{against}{t}{data}{matched}"
            else:
                along = "" if self.path == FACTORS else f" along the path {self.path}"
                text = f"{self.barrier} of {self.group}{against}{t}{along}{data}{matched}"
        if not self.setting:
            text = f"{self.reduce} {text}, round {self.round}"
        if not self.of:
            return text
        changes = ", ".join(f"{key} = {value}" for key, value in self.of.items())
        if self.is_correlation:
            return f"{text}, rank correlation over {self.over} with that of {changes}"
        return f"{text}, {'minus' if self.compare == 'difference' else 'over'} that of {changes}"

    def rule(self) -> str:
        """Describe the rule in words."""
        rules = (("above", self.above), ("below", self.below), ("within +-", self.within))
        return " and ".join(f"{name} {bound:g}" for name, bound in rules if bound is not None)

    @property
    def region(self) -> tuple[float, float]:
        """The least and the greatest value that keep the rule."""
        lower = (bound for bound in (self.above, None if self.within is None else -self.within) if bound is not None)
        upper = (bound for bound in (self.below, self.within) if bound is not None)
        return max(lower, default=-math.inf), min(upper, default=math.inf)

    def holds(self, value: float) -> bool:
        """Return whether a value satisfies the rule; NaN does not."""
        lower, upper = self.region
        return lower <= value <= upper

    def verdict(self, low: float, high: float) -> Verdict:
        """Return whether all values of an interval keep the rule, none does, or some do; NaN decides nothing."""
        lower, upper = self.region
        if lower <= low and high <= upper:
            return "ok"
        return "FAILED" if high < lower or low > upper else "undecided"
