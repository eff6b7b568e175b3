"""What an experiment is expected to show, as its file says it and ``fedsim check`` tests it."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# What says which value is measured; a key of ``of`` that is none of these is a setting of another run.
MEASURES = ("barrier", "metric", "group", "against", "t", "data", "model", "server", "round", "reduce")


class Expectation(BaseModel):
    """``[[expect]]``: a value that is measured in each run, and the rule that it must keep.

    Parameters
    ----------
    barrier
        Column of the barriers' table, such as ``loss_mean_ends``; or else
    metric
        ``accuracy`` or ``loss`` of a ``model`` on the clients' own test data, or with ``server`` on the server's.
    group
        Of the barrier: the name of a group or a pattern such as ``shallow:*``; ``layers`` is every single layer.
    against, t
        ``average`` or ``pairs``, and the interpolation coefficient: 1 and 1/2 if not given.
    data
        On which data the barrier is measured, where there are several: ``server``, ``train`` or ``clients``.
    round
        A number, the ``last`` one measured, or ``all``.
    reduce
        How the values of several groups, bases, clients and rounds become one.
    above, below, within
        The value must be at least this, at most this, or between minus and plus this.
    where
        Values of settings, or lists of them, that a run must have for this to be expected of it; all by default.
    of
        What the value is compared with: changes of the above, measured in the same run, or of settings, measured in
        the run of the same seed that has these and is equal in all tables that they are not in.
    compare
        By the ``difference`` from that, or the ``ratio`` to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    barrier: str | None = None
    metric: Literal["accuracy", "loss"] | None = None
    group: str = "full"
    against: Literal["average", "pairs"] = "average"
    t: Annotated[float, Field(ge=0, le=1)] | None = None
    data: Literal["server", "train", "clients"] = "server"
    model: str = "personalised"
    server: bool = False
    round: Annotated[int, Field(ge=1)] | Literal["last", "all"] = "last"
    reduce: Literal["mean", "max", "min"] = "mean"
    above: float | None = None
    below: float | None = None
    within: Annotated[float, Field(gt=0)] | None = None
    where: dict[str, Any] = {}
    of: dict[str, Any] = {}
    compare: Literal["difference", "ratio"] = "difference"

    @model_validator(mode="after")
    def _one_value_and_a_rule(self) -> Self:
        if (self.barrier is None) == (self.metric is None):
            raise ValueError("must have either barrier or metric, which is measured")
        if self.above is None and self.below is None and self.within is None:
            raise ValueError("must have a rule: above, below or within")
        if self.compare == "ratio" and not self.of:
            raise ValueError("compare = 'ratio' needs of, which the value is divided by")
        _ = self.reference  # what it is compared with is measurable too
        return self

    @property
    def reference(self) -> Self | None:
        """What is measured for comparison; None without ``of``."""
        changes = {key: value for key, value in self.of.items() if key in MEASURES}
        kept = self.model_dump(exclude_unset=True, exclude={"of", "compare"})
        return type(self).model_validate(kept | changes) if self.of else None

    @property
    def other_settings(self) -> dict[str, Any]:
        """The settings of the run in which the reference is measured; none if it is the same run."""
        return {key: value for key, value in self.of.items() if key not in MEASURES}

    def what(self) -> str:
        """Return in words what is measured."""
        if self.metric:
            text = f"{self.model} {self.metric}{' on the server' if self.server else ''}"
        else:
            t = "" if self.t is None else f" at t = {self.t:g}"
            data = "" if self.data == "server" else f" on {self.data} data"
            against = "" if self.against == "average" else " of pairs"
            text = f"{self.barrier} of {self.group}{against}{t}{data}"
        text = f"{self.reduce} {text}, round {self.round}"
        if not self.of:
            return text
        changes = ", ".join(f"{key} = {value}" for key, value in self.of.items())
        return f"{text}, {'minus' if self.compare == 'difference' else 'over'} that of {changes}"

    def rule(self) -> str:
        """Return in words which values are as expected."""
        rules = (("above", self.above), ("below", self.below), ("within +-", self.within))
        return " and ".join(f"{name} {bound:g}" for name, bound in rules if bound is not None)

    def holds(self, value: float) -> bool:
        """Tell whether a value keeps the rule; NaN does not."""
        return (
            value == value
            and (self.above is None or value >= self.above)
            and (self.below is None or value <= self.below)
            and (self.within is None or abs(value) <= self.within)
        )
