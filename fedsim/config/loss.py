"""``[loss]``: what training descends, and how classes are weighed in it."""

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedsim.config.records import Choice

ClassWeight = Annotated[float, Field(gt=0)]


class LossConfig(Choice):
    """``[loss]``: what training descends and evaluation measures.

    Parameters
    ----------
    name
        Name of the loss, or a custom function, as ``module:function``; ``auto`` is the first loss of the task.
    class_weights
        Weights of the targets in training: a positive number for each class; or those by which all classes weigh the
        same in a client's training data (``balanced``), or in that of all clients (``balanced-all``).
    """

    name: str = "auto"
    class_weights: Literal["none", "balanced", "balanced-all"] | tuple[ClassWeight, ...] = "none"

    @field_validator("class_weights", mode="before")
    @classmethod
    def _names_or_numbers(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            if all(type(each) in (int, float) and 0 < each < math.inf for each in value):
                return tuple(map(float, value))
        elif value in ("none", "balanced", "balanced-all"):
            return value
        # By itself the check of a union names its first alternative only.
        raise ValueError(
            "must be 'none', 'balanced', 'balanced-all', or a list of positive numbers, one for each class"
        )
