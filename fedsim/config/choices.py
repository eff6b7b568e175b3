"""All that can be chosen by name, in one place: strategies, partitions, models, losses, data sets and so on.

This is the only module that reaches the packages `strategies` and `partitions`.
"""

from typing import Any, Literal

from fedsim.config.catalogue import Catalogue
from fedsim.config.config import Config
from fedsim.config.evaluation import MetricConfig
from fedsim.config.local import OptimizerConfig
from fedsim.config.loss import LossConfig
from fedsim.config.tables import DataConfig, FeaturesConfig, ModelConfig, PartitionConfig, StrategyConfig
from fedsim.data import DATA
from fedsim.data.flower_partitioners import FLOWER_PARTITIONERS, NO_SCHEMES
from fedsim.data.flower_partitioners import PREFIX as SCHEME
from fedsim.data.skews import FEATURES
from fedsim.lazy import LazyTable, Place
from fedsim.models.architectures import MODELS
from fedsim.strategy.flower_table import FLOWER_RULES, NO_RULES, PREFIX
from fedsim.training.metrics import METRICS
from fedsim.training.settings import OPTIMIZERS as OF_TORCH
from fedsim.training.tasks import LOSSES, OPTIMIZERS, OWN_METRICS
from strategies import NAMES, STRATEGIES

Kind = Literal["strategies", "partitions", "features", "models", "losses", "optimizers", "metrics", "data"]


CATALOGUES: dict[Kind, Catalogue] = {
    "strategies": Catalogue(
        STRATEGIES | FLOWER_RULES,
        "strategy",
        StrategyConfig.KEY,
        ("model", "inputs"),
        NAMES,
        {PREFIX + name: reason for name, reason in NO_RULES.items()},
        Place("fedsim.strategy", "Strategy"),
        classes_only=True,
    ),
    "partitions": Catalogue(
        # That package imports NumPy, and is written so that it needs nothing of fedsim.
        LazyTable.from_source("partitions", "PARTITIONS") | FLOWER_PARTITIONERS,
        "partition",
        PartitionConfig.KEY,
        ("labels", "clients", "rng", "ids", "validation", "test"),
        refused={SCHEME + name: reason for name, reason in NO_SCHEMES.items()},
    ),
    "features": Catalogue(FEATURES, "features", FeaturesConfig.KEY, ("inputs", "client", "clients", "rng")),
    "models": Catalogue(
        MODELS,
        "model",
        ModelConfig.KEY,
        ("shape", "classes", "vocabulary", "pad_token"),
        makes=Place("torch.nn", "Module"),
    ),
    "losses": Catalogue(LOSSES, "loss", LossConfig.KEY, ("outputs", "targets")),
    "optimizers": Catalogue(
        OPTIMIZERS,
        "optimizer",
        OptimizerConfig.KEY,
        ("params", "lr"),
        refused={name: f"local.optimizer = {name!r} chooses it" for name in OF_TORCH},
        makes=Place("torch.optim", "Optimizer"),
    ),
    "metrics": Catalogue(
        OWN_METRICS,
        "metric",
        MetricConfig.KEY,
        ("outputs", "targets"),
        refused={name: f"evaluation.metrics = [{name!r}] measures it" for name in METRICS},
    ),
    "data": Catalogue(DATA, "data", DataConfig.KEY, ("task",), makes=Place("fedsim.data", "Dataset")),
}


def custom_names(config: Config) -> dict[str, str]:
    """Return what the user has written of the parts of a run, such as ``{"data": "mine:load"}``, by table."""
    chosen = {each: getattr(getattr(config, each.table), each.key) for each in CATALOGUES.values()}
    return {each.table: name for each, name in chosen.items() if each.canonical(name) not in each.entries}


def method_name(config: Config) -> str:
    """Return the name of a run's method in the literature, by which messages call it as tables do."""
    return CATALOGUES["strategies"].name_of(config.strategy)


def is_name(config: Config, setting: str, value: Any) -> bool:
    """Return whether a setting chooses something by name, and a value is a name, in any spelling, of what is chosen."""
    found = [each for each in CATALOGUES.values() if f"{each.table}.{each.key}" == setting]
    return any(isinstance(value, str) and each.is_called(getattr(config, each.table), value) for each in found)


def resolve(config: Config, *, custom: bool = True) -> Config:
    """Return the config with every option of every choice checked and written out.

    Parameters
    ----------
    custom
        Whether custom parts are imported and their options checked too.

    Raises
    ------
    ConfigError
        If a name or an option is unknown, or has a wrong type.
    """
    choices = {catalogue: getattr(config, catalogue.table) for catalogue in CATALOGUES.values()}
    if not custom:
        choices = {each: choice for each, choice in choices.items() if each.table not in custom_names(config)}
    return config.model_copy(
        update={
            catalogue.table: choice.model_copy(
                update={catalogue.key: catalogue.canonical(getattr(choice, catalogue.key)), **catalogue.options(choice)}
            )
            for catalogue, choice in choices.items()
        }
    )
