"""The bases of all records of settings: frozen and strict, with finite numbers only."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """A table of fixed settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Choice(Table):
    """A table that chooses an entry of a catalogue by ``KEY`` and holds its options; ``FILES`` name files."""

    model_config = ConfigDict(extra="allow")
    KEY: ClassVar[str] = "name"
    FILES: ClassVar[tuple[str, ...]] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The settings that belong to the chosen entry."""
        return dict(self.model_extra or {})
