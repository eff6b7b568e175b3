"""What an experiment's file says, and everything that can be chosen by name."""

from fedsim.config.tables import (
    Choice,
    Config,
    DataConfig,
    EngineConfig,
    FeaturesConfig,
    StopConfig,
    explain_rule,
    parse_assignment,
    read_toml,
    short_hash,
    shown,
    suggest,
    with_settings,
)

__all__ = [
    "Choice",
    "Config",
    "DataConfig",
    "EngineConfig",
    "FeaturesConfig",
    "StopConfig",
    "explain_rule",
    "parse_assignment",
    "read_toml",
    "short_hash",
    "shown",
    "suggest",
    "with_settings",
]
