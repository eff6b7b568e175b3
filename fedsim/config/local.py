"""``[local]``: how clients train, with the ranges of its settings."""

from dataclasses import fields
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedsim.config.records import Choice, Table
from fedsim.training.settings import OPTIMIZERS, LocalSettings, Precision

Beta = Annotated[float, Field(ge=0, lt=1)]
# What torch's optimisers take where a file does not say; SGD has the defaults of the table.
DEFAULTS: dict[str, dict[str, float]] = {"adam": {"lr": 1e-3}, "adamw": {"lr": 1e-3, "weight_decay": 1e-2}}


class OptimizerConfig(Choice):
    """``[optimizer]``: an optimiser of the user's own, in place of the one in ``[local]``.

    Parameters
    ----------
    name
        A custom function or subclass of `torch.optim.Optimizer`, as ``module:attribute``; ``local`` is the optimiser
        that ``[local]`` chooses.
    """

    name: str = "local"


class LocalConfig(Table):
    """``[local]``: the clients' training, with the settings of `fedsim.training.LocalSettings`.

    Without ``lr``, Adam and AdamW have torch's 0.001, and AdamW torch's weight decay of 0.01.
    """

    takes_options_of: ClassVar[type] = LocalSettings

    epochs: Annotated[int, Field(ge=1)] = LocalSettings.epochs
    batch_size: Annotated[int, Field(ge=1)] = LocalSettings.batch_size
    lr: Annotated[float, Field(gt=0)] = LocalSettings.lr
    momentum: Annotated[float, Field(ge=0, lt=1)] = LocalSettings.momentum
    weight_decay: Annotated[float, Field(ge=0)] = LocalSettings.weight_decay
    nesterov: bool = LocalSettings.nesterov
    optimizer_state: Literal["reset", "keep"] = LocalSettings.optimizer_state
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = LocalSettings.betas
    eps: Annotated[float, Field(gt=0)] = LocalSettings.eps
    amsgrad: bool = LocalSettings.amsgrad
    schedule: Literal["constant", "cosine", "linear", "step"] = LocalSettings.schedule
    schedule_over: Literal["run", "round"] = LocalSettings.schedule_over
    warmup: Annotated[int, Field(ge=0)] = LocalSettings.warmup
    end_factor: Annotated[float, Field(ge=0, le=1)] = LocalSettings.end_factor
    step_size: Annotated[int, Field(ge=1)] | None = LocalSettings.step_size
    gamma: Annotated[float, Field(gt=0, le=1)] = LocalSettings.gamma
    clip_norm: Annotated[float, Field(gt=0)] | None = LocalSettings.clip_norm
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = LocalSettings.label_smoothing
    lr_scale: dict[str, Annotated[float, Field(gt=0)]] = {}  # noqa: RUF012 (a field)
    weight_decay_on: Literal["all", "weights"] = LocalSettings.weight_decay_on
    order: Literal["own", "same"] = LocalSettings.order
    precision: Precision = LocalSettings.precision

    @field_validator("optimizer", mode="before")
    @classmethod
    def _one_of_torch(cls, value: object) -> object:
        if value not in OPTIMIZERS:
            raise ValueError("must be 'sgd', 'adam' or 'adamw'; name one of your own in [optimizer]")
        return value

    @field_validator("betas", mode="before")
    @classmethod
    def _two_numbers(cls, value: object) -> object:
        if not (isinstance(value, list | tuple) and len(value) == 2):
            raise ValueError("must be two numbers, such as [0.9, 0.999]")
        return value

    @field_validator("lr_scale", mode="before")
    @classmethod
    def _factors_by_layers(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError('must be a table of factors by layer expression, such as { "head" = 10 }')
        return value

    @property
    def settings(self) -> LocalSettings:
        """The same settings as local training takes them."""
        return LocalSettings(**{field.name: getattr(self, field.name) for field in fields(LocalSettings)})

    @model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        for name, value in DEFAULTS.get(self.optimizer, {}).items():
            if name not in self.model_fields_set:
                # Not among what the file sets, so that a sweep over optimisers begins from each one's own.
                self.__dict__[name] = value
        assert self.settings  # which checks them
        return self
