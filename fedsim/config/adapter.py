"""``[model.adapter]``: what is trained on top of a frozen model."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.records import Table
from fedsim.errors import ConfigError
from fedsim.models.adapter import Adapter, AdapterKind

# Options that not every kind of adapter has.
OPTIONS = {"rank": ("lora", "dora", "vera"), "alpha": ("lora", "dora"), "dropout": ("lora", "dora", "vera")}


class AdapterConfig(Table):
    """``[model.adapter]``: small layers that train in place of the model's own, which are frozen.

    Without a kind, or with ``none``, nothing is added. Settings are those of `fedsim.models.adapter.Adapter`.
    """

    takes_options_of: ClassVar[type] = Adapter
    KEY: ClassVar[str] = "kind"

    kind: Literal["none", AdapterKind] = "none"
    rank: Annotated[int, Field(ge=1)] = Adapter.rank
    ranks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = Adapter.ranks
    alpha: Annotated[float, Field(gt=0)] = Adapter.alpha
    dropout: Annotated[float, Field(ge=0, lt=1)] = Adapter.dropout
    targets: Annotated[str, Field(min_length=1)] = Adapter.targets
    head: bool = Adapter.head

    @model_validator(mode="after")
    def _take_the_largest(self) -> Self:
        if not self.ranks:
            return self
        largest = max(self.ranks)
        if "rank" in self.model_fields_set and self.rank != largest:
            raise ValueError(f"rank = {self.rank} and ranks, whose largest is {largest}, are set; remove rank")
        if "kind" in self.model_fields_set and self.kind != "lora":
            raise ValueError(f"ranks is for kind = 'lora', and kind = {self.kind!r}; remove it")
        # Not among what the file sets, so that a sweep over ranks begins without it.
        self.__dict__["rank"] = largest
        return self

    @model_validator(mode="after")
    def _say_the_kind(self) -> Self:
        if self.model_fields_set and "kind" not in self.model_fields_set:
            raise ValueError(f"{min(self.model_fields_set)} is set without a kind; add kind = 'lora'")
        return self

    def check_options(self, source: str) -> None:
        """Check that the kind has the options that are set; runs of earlier versions may hold others.

        Raises
        ------
        ConfigError
            If an option would have no effect.
        """
        for name, kinds in OPTIONS.items():
            if self.kind not in ("none", *kinds) and getattr(self, name) != type(self).model_fields[name].default:
                raise ConfigError(
                    f"{source}: model.adapter.{name} = {getattr(self, name):g} has no effect with kind = "
                    f"{self.kind!r}, only with {' or '.join(map(repr, kinds))}; remove it"
                )
