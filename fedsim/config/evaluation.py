"""``[evaluation]``: which models are evaluated, on which data, by which metrics."""

import math
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from fedsim.config.records import Choice, Table
from fedsim.options import as_toml, one_of
from fedsim.training.metrics import LOWER, METRICS, OWN, OWN_NAME

PERTURBATION = re.compile(r"(fgsm|noise):((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)")
EvaluatedModel = Literal["personalised", "global", "trained", "fine-tuned", "knn"]
MetricName = Annotated[str, AfterValidator(one_of(METRICS, "; name one of your own in [metric]"))]


class EvaluationConfig(Table):
    """``[evaluation]``: which models of each client are evaluated, and on which data.

    Parameters
    ----------
    models
        Models of each client: the ``personalised`` one, with what it next takes from the server; the ``global`` one;
        the client's model right after local training (``trained``); the personalised one after a few more epochs on
        the client's training data (``fine-tuned``), which is then discarded; and the personalised one mixed with the
        nearest neighbours among the client's training examples (``knn``).
    on
        Data of the clients' models: each client's own ``test`` data, and the test data of the ``server``.
    fine_tune_epochs
        Epochs of fine-tuning.
    fine_tune_layers
        Layers that are fine-tuned: a layer expression, or, with ``auto``, those that the strategy names.
    fine_tune_lr
        Step size of fine-tuning (default: that of local training).
    fine_tune_every
        Rounds between fine-tunings, in addition to the one in the last round; 0 for the last round only.
    knn_neighbours
        Number of nearest neighbours, by what the head gets.
    knn_weight
        Weight of the neighbours in the mix of probabilities, 0 for the model alone (default: for each client, that of
        0, 0.1, ... and 1 with the least loss on its validation data).
    knn_scale
        Scale of the distances: a neighbour at the distance d counts exp(-d^2 / (features * scale)).
    perturbed
        Perturbations of the test data on which the server's models are measured too, such as ``fgsm:0.1`` or
        ``noise:0.2``: inputs moved by that size along the sign of the loss's gradient, or by Gaussian noise of that
        standard deviation, in units of the normalised inputs.
    metrics
        Metrics besides the loss and the task's main metric, on all data.
    save_predictions
        Whether to write what the final models predict for each test example.
    """

    models: Annotated[tuple[EvaluatedModel, ...], Field(strict=False)] = ("personalised", "global")
    on: Annotated[tuple[Literal["test", "server"], ...], Field(strict=False)] = ("test",)
    fine_tune_epochs: Annotated[int, Field(ge=1)] = 5
    fine_tune_layers: str = "auto"
    fine_tune_lr: Annotated[float, Field(gt=0)] | None = None
    fine_tune_every: Annotated[int, Field(ge=0)] = 0
    knn_neighbours: Annotated[int, Field(ge=1)] = 10
    knn_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    knn_scale: Annotated[float, Field(gt=0)] = 1.0
    perturbed: Annotated[tuple[str, ...], Field(strict=False)] = ()
    metrics: Annotated[tuple[MetricName, ...], Field(strict=False)] = ()
    save_predictions: bool = False

    @field_validator("models")
    @classmethod
    def _begin_with_those_of_every_report(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not {"personalised", "global"} <= set(value):
            raise ValueError('must hold "personalised" and "global", which every report shows')
        return value

    @field_validator("on")
    @classmethod
    def _hold_the_own_test_data(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "test" not in value:
            raise ValueError('must hold "test", the client\'s own test data')
        return value

    @field_validator("perturbed")
    @classmethod
    def _be_kinds_and_sizes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        found = []
        for text in value:
            match = PERTURBATION.fullmatch(text)
            if not match or not 0 < float(match[2]) < math.inf:
                raise ValueError(
                    'must hold kinds and sizes greater than 0, such as "fgsm:0.1" and "noise:0.2"; '
                    f"{as_toml(text)} is neither"
                )
            found.append((match[1], float(match[2])))
        if len(set(found)) < len(found):
            raise ValueError("must hold each perturbation once")
        return value

    def sizes(self, kind: Literal["fgsm", "noise"]) -> dict[float, str]:
        """Return the sizes of the perturbations of a kind, each with the text that names it."""
        parts = [text.partition(":") for text in self.perturbed]
        return {float(size): f"{found}:{size}" for found, _, size in parts if found == kind}


class MetricConfig(Choice):
    """``[metric]``: a metric of the user's own, or several, measured wherever those of ``[evaluation]`` are.

    Parameters
    ----------
    name
        A custom function of a model's outputs and the targets, as ``module:function``; ``none`` measures nothing.
    gives
        Names of the numbers that it returns, with ``:lower`` where less is better, such as ``brier:lower`` (default:
        the name of the function). Of several it returns a dictionary.
    """

    name: str = "none"
    gives: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _be_names(self) -> Self:
        if self.gives and self.name == "none":
            raise ValueError("gives names what a metric returns; name a metric, or leave it out")
        if odd := [each for each in self.measured if not OWN_NAME.fullmatch(each)]:
            text = as_toml(odd[0].removeprefix(OWN))
            raise ValueError(
                f"gives must hold names such as top5 or brier:lower, of letters, digits, - and _; not {text}"
            )
        if len({each.removesuffix(LOWER) for each in self.measured}) < len(self.measured):
            raise ValueError("gives must hold each name once")
        return self

    @property
    def measured(self) -> tuple[str, ...]:
        """What the records call its numbers."""
        if self.name == "none":
            return ()
        return tuple(f"{OWN}{each}" for each in self.gives or (self.name.rpartition(":")[2],))
