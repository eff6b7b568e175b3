"""The experiments that the soak runs: tiny ones, over all strategies and what is hard to resume."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from strategies import STRATEGIES

# Options that have no default, or that let more happen in a few rounds of a tiny model.
OPTIONS = {
    "layer_set": 'shared = "body"',
    "fedadam": 'shared = "body"',
    "fedrep": "head_epochs = 2",
    "fedpart": "warm_up = 1\nrounds_each = 1",
    "fedlama": "warm_up = 0",
    "llmc": 'shared = "body"',
    "pfedme": "inner_steps = 2",
    "hierarchical_average": 'shared = "body"\norder = "nearest"',
}
PLAIN_SGD = ("scaffold", "pfedme", "fedselect")  # methods that are defined for it only
NO_NORM, NOT_FROZEN = ("fedma",), ("fedma",)
HARD = ("momentum", "frozen", "dropout", "adamw")  # what a resumed run must have kept
OPTIMIZERS = {
    "momentum": 'momentum = 0.9\noptimizer_state = "keep"',
    "adamw": 'optimizer = "adamw"\noptimizer_state = "keep"\nschedule = "cosine"\nclip_norm = 1.0',
}
EXPERIMENT = """
rounds = {rounds}
clients = 4
participation = 0.75
checkpoint_every = {every}
[data]
name = "toy"
examples = 160
[partition]
scheme = "dirichlet"
alpha = 1.0
[model]
name = "models:{model}"
{freeze}
[local]
batch_size = 16
{optimizer}
[strategy]
name = "{strategy}"
{options}
[barriers]
every = 2
pairs = 1
on = ["server"]
examples = 20
[engine]
name = "{engine}"
workers = {workers}
"""
MODELS = '''"""Models of the soak."""

from collections import OrderedDict

from torch import nn


def plain(shape, classes, norm=True, dropout=0.0):
    """Build three linear layers."""
    modules = OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(64, 8))
    if norm:
        modules["norm"] = nn.BatchNorm1d(8)
    modules["relu1"] = nn.ReLU()
    if dropout:
        modules["dropout"] = nn.Dropout(dropout)
    modules |= OrderedDict(fc2=nn.Linear(8, 6), relu2=nn.ReLU(), fc3=nn.Linear(6, classes))
    return nn.Sequential(modules)


def unnormalised(shape, classes):
    """Build them without normalisation."""
    return plain(shape, classes, norm=False)


def dropout(shape, classes):
    """Build them with dropout."""
    return plain(shape, classes, norm=False, dropout=0.3)
'''


@dataclass(frozen=True)
class Study:
    """An experiment of one run.

    Parameters
    ----------
    hard
        One of `HARD`.
    """

    strategy: str
    hard: str = "momentum"
    checkpoint_every: int = 1
    engine: str = "local"
    rounds: int = 5
    workers: int = 1

    @property
    def name(self) -> str:
        """Its name, which no other study has."""
        parts = (self.strategy, self.hard, self.engine, f"{self.rounds}-{self.checkpoint_every}-{self.workers}")
        return "-".join(parts)

    @cached_property
    def text(self) -> str:
        """The experiment's file."""
        with_norm = self.strategy not in NO_NORM
        optimizer = "" if self.strategy in PLAIN_SGD else OPTIMIZERS.get(self.hard, "")
        model = "dropout" if self.hard == "dropout" else "plain" if with_norm else "unnormalised"
        return EXPERIMENT.format(
            rounds=self.rounds,
            every=self.checkpoint_every,
            model=model,
            freeze='freeze = "fc1"' if self.hard == "frozen" and self.strategy not in NOT_FROZEN else "",
            optimizer=optimizer,
            strategy=self.strategy,
            options=OPTIONS.get(self.strategy, ""),
            engine=self.engine,
            workers=self.workers,
        )

    @property
    def command(self) -> list[str]:
        """The command that runs it, or resumes it, in a folder where it was written."""
        return ["run", "study.toml"]

    def write(self, folder: Path) -> None:
        """Write what the command reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.toml").write_text(self.text)
        (folder / "models.py").write_text(MODELS)


def study_of(number: int, engine: str = "local") -> Study:
    """Return the study of a case: all strategies in turn, and with each all that is hard to resume."""
    names = list(STRATEGIES)
    turn, index = divmod(number, len(names))
    return Study(names[index], HARD[turn % len(HARD)], (1, 3)[turn // len(HARD) % 2], engine)
