"""What an experiment's file says, and everything that can be chosen by name."""

from fedsim.config.assignments import parse_assignment
from fedsim.config.config import Config
from fedsim.config.records import Choice
from fedsim.config.tables import DataConfig, EngineConfig, FeaturesConfig, StopConfig
from fedsim.config.toml import read_toml, short_hash, with_settings
from fedsim.options import as_toml, explain_rule, suggest

__all__ = [
    "Choice",
    "Config",
    "DataConfig",
    "EngineConfig",
    "FeaturesConfig",
    "StopConfig",
    "as_toml",
    "explain_rule",
    "parse_assignment",
    "read_toml",
    "short_hash",
    "suggest",
    "with_settings",
]
