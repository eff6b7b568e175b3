"""``[track]``: experiment trackers that are sent what a run records."""

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from fedsim.config.records import Table

SERVER = re.compile(r"\w[\w+.-]*://.*|databricks(-uc)?", re.ASCII)
FORBIDDEN = "/\\#?%:"  # in the name of a project of Weights & Biases


def _server(value: str) -> str:
    if value and (not SERVER.fullmatch(value) or value.startswith("file:")):
        raise ValueError(
            'must be a database or a server, such as "sqlite:///mlflow.db" or "http://localhost:5000", as MLflow no '
            "longer writes folders"
        )
    return value


def _project(value: str) -> str:
    if value and (not value.isprintable() or set(value) & set(FORBIDDEN) or not any(map(str.isalnum, value))):
        raise ValueError(f"must be the name of a project, with a letter or digit and without any of {FORBIDDEN}")
    return value


Project = Annotated[str, StringConstraints(max_length=128), AfterValidator(_project)]


class TrackConfig(Table):
    """``[track]``: experiment trackers. Like the engine, it changes no number of a run and does not name it.

    Parameters
    ----------
    tensorboard
        Whether event files are written, into ``tracking/tensorboard`` in the experiment's folder.
    wandb
        Project of Weights & Biases; offline, in ``tracking/wandb``, unless ``WANDB_MODE`` says otherwise.
    mlflow
        Tracking URI of MLflow, such as ``sqlite:///mlflow.db``.
    trackio
        Project of Trackio; local unless Trackio's own environment variables say otherwise.
    """

    tensorboard: bool = False
    wandb: Project = ""
    mlflow: Annotated[str, AfterValidator(_server)] = ""
    trackio: Project = ""

    @property
    def wanted(self) -> dict[str, str]:
        """Where to each tracker that is used sends, by its name."""
        return {name: str(value) for name in type(self).model_fields if (value := getattr(self, name))}
