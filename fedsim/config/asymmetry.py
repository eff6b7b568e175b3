"""``[model.asymmetry]``: what of a model is fixed and equal in all models, so that units cannot change places."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedsim.config.records import Table
from fedsim.errors import ConfigError

Number = int | float


class AsymmetryConfig(Table):
    """``[model.asymmetry]``: fixed entries of the weights, or gates in place of activations; a text is the ``kind``.

    Parameters
    ----------
    kind
        What is fixed: entries of the weights of linear and convolutional layers (``w``), or matrices of gates in place
        of the activations (``sigma``); ``none`` is the model as it is.
    fixed
        Fixed entries of each output's weights, for ``w``: their number, or their share if it is below 1; or a table
        from layer expressions to these, for the layers that it names.
    kappa
        Standard deviation of the fixed entries, for ``w``, or a table from layer expressions (default: 1 / sqrt(n) for
        n fixed entries of an output); for ``sigma``, a factor for the entries of the matrices (default: 1).
    seed
        Seed of what is fixed, for runs of several seeds that share it (default: the run's).
    """

    KEY: ClassVar[str] = "kind"

    kind: Literal["none", "w", "sigma"] = "none"
    fixed: Number | dict[str, Number] = 0.125
    kappa: Number | dict[str, Number] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_a_kind(cls, data: Any) -> Any:
        return {"kind": data} if isinstance(data, str) else data

    @field_validator("fixed", mode="before")
    @classmethod
    def _fix_some(cls, value: object) -> object:
        for each in _values(value):
            if not _is_number(each) or each <= 0 or (each > 1 and not float(each).is_integer()):
                raise ValueError(
                    f"must be a share of each output's weights, a whole number of them, or a table; not {each!r}"
                )
        return value

    @field_validator("kappa", mode="before")
    @classmethod
    def _have_a_size(cls, value: object) -> object:
        for each in () if value is None else _values(value):
            if not _is_number(each) or each <= 0:
                raise ValueError(f"must be a positive number, or a table of layers; not {each!r}")
        return value

    @model_validator(mode="after")
    def _say_the_kind(self) -> Self:
        if self.model_fields_set and "kind" not in self.model_fields_set:
            raise ValueError(f"{min(self.model_fields_set)} is set without a kind; add kind = 'w'")
        return self

    def check_options(self, source: str, adapter: str) -> None:
        """Check that the kind has the options that are set, and that nothing else changes the same layers.

        Parameters
        ----------
        adapter
            Kind of the model's adapters.

        Raises
        ------
        ConfigError
            If an option would have no effect, or the model has adapters.
        """
        chosen = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.kind == "none" and chosen:
            raise ConfigError(f"{source}: model.asymmetry.{chosen[0]} has no effect with kind = 'none'; remove it")
        if self.kind == "sigma" and self.fixed != type(self).model_fields["fixed"].default:
            raise ConfigError(f"{source}: model.asymmetry.fixed has no effect with kind = 'sigma', only 'w'; remove it")
        if self.kind == "sigma" and isinstance(self.kappa, dict):
            raise ConfigError(f"{source}: model.asymmetry.kappa must be one number with kind = 'sigma'")
        if self.kind != "none" and adapter != "none":
            raise ConfigError(
                f"{source}: model.asymmetry.kind = {self.kind!r} and model.adapter.kind = {adapter!r} exclude each "
                "other: adapters train on a model as it is; set one to 'none'"
            )


def _values(value: object) -> list[Any]:
    return list(value.values()) or [None] if isinstance(value, dict) else [value]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
