"""``[local]``: how clients train, with the ranges of its settings."""

from dataclasses import fields
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.tables import Table
from fedsim.training.settings import LocalSettings


class LocalConfig(Table):
    """``[local]``: the clients' training, and the ranges of its settings; see `fedsim.training.LocalSettings`."""

    epochs: Annotated[int, Field(ge=1)] = LocalSettings.epochs
    batch_size: Annotated[int, Field(ge=1)] = LocalSettings.batch_size
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = LocalSettings.lr
    momentum: Annotated[float, Field(ge=0, lt=1)] = LocalSettings.momentum
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = LocalSettings.weight_decay
    nesterov: bool = LocalSettings.nesterov
    optimizer_state: Literal["reset", "keep"] = LocalSettings.optimizer_state

    @cached_property
    def settings(self) -> LocalSettings:
        """The same settings as local training takes them."""
        return LocalSettings(**{field.name: getattr(self, field.name) for field in fields(LocalSettings)})

    @model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        assert self.settings  # which checks them
        return self
