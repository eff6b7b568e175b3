from . import alignment, analysis, data, models, strategy, training
from .data import Dataset, Examples
from .errors import ConfigError, RunError
from .experiment.api import barriers, compare, load, partition, run
from .experiment.finished import Comparison, FinishedRun, Partition, Round, Runs
from .experiment.paper_table import PaperTable, table
from .experiment.tracking.callback import ActiveRun, Callback
from .models.layers import LayerGroup
from .models.params import lerp
from .strategy import ClientRule, ClientUpdate, Option, Phase, Strategy

__all__ = [
    "ActiveRun",
    "Callback",
    "ClientRule",
    "ClientUpdate",
    "Comparison",
    "ConfigError",
    "Dataset",
    "Examples",
    "FinishedRun",
    "LayerGroup",
    "Option",
    "PaperTable",
    "Partition",
    "Phase",
    "Round",
    "RunError",
    "Runs",
    "Strategy",
    "__version__",
    "alignment",
    "analysis",
    "barriers",
    "compare",
    "data",
    "lerp",
    "load",
    "models",
    "partition",
    "run",
    "strategy",
    "table",
    "training",
]

__version__: str
