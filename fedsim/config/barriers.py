"""``[barriers]``: what is measured of the uploaded models, on which data, and how often."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from fedsim.analysis.mixing.names import FACTORS, PAIR_TS, Normalisation, PathName
from fedsim.analysis.suite import BY_FACTORS, MEASURES, MeasureName
from fedsim.config.expectation import MatchedBy
from fedsim.config.records import Table
from fedsim.options import auto_or_at_least
from fedsim.training.settings import Precision

MeasuredOn = Literal["server", "train", "clients"]


class BarriersConfig(Table):
    """``[barriers]``: layer-wise barriers between the uploaded models, and further measures of these models.

    Parameters
    ----------
    every
        Rounds from one measurement to the next: 0 for never, ``auto`` for as often as costs at most a tenth of the
        training; only barriers, once per kind of ``matching``, are counted, not the matching itself or other measures.
    groups
        Kinds of groups (`fedsim.analysis.mixing.groups.named_groups`) or layer expressions.
    against
        Where replacement layers come from: the average of the uploaded models.
    pairs
        Number of pairs of clients to measure in addition to the average.
    ts
        Interpolation coefficients between the models of a pair. Features are compared at those that are neither 0 nor
        1, or halfway if there are none.
    on
        Data that the models are measured on: barriers only, each client's model on its own test data (``clients``);
        the server's test data (``server``); or all clients' training data (``train``).
    examples
        Largest number of examples, the same in each round.
    normalisation
        Running statistics of a mixed layer: mixed too (``interpolate``), the model's own (``base``), or recomputed.
    tolerance
        Width in nats to which a mean loss must be known: mixed models then see only as many examples as that takes.
    precision
        What mixed models compute in where there is a tolerance: ``bfloat16``, with the mean difference to float32
        estimated from a few examples, where the processor has instructions for it.
    bands
        Confidence level of the simultaneous bands; 0 for none.
    measures
        Further measures of the same models.
    matching
        Whether models are measured as they are (``none``), after their units have been aligned by ``weights``, by
        ``c2m3``, which matches all weights at once, or by ``activations``, by weights and rotations within the heads of
        transformers (``head-rotations``) or of the residual stream too (``rotations``), also up to all ``invertible``
        matrices within heads, or after their experts have been aligned by their ``gate``, by ``gram`` matrices, or only
        the ``units`` within each, or after all units have been aligned by gradients of the loss halfway (``sinkhorn``);
        or several of these.
    path
        How models with adapters of LoRA are mixed: factor by factor (``factors``), by the products of their factors
        (``product``), or factor by factor in a common frame (``aligned``); or several of these. Measures other than
        barriers mix factor by factor.
    """

    every: Annotated[int | Literal["auto"], BeforeValidator(auto_or_at_least(0))] = "auto"
    groups: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("layers", "full")
    against: Literal["average"] = "average"
    pairs: Annotated[int, Field(ge=0)] = 0
    ts: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(strict=False, min_length=1)] = PAIR_TS
    on: Annotated[tuple[MeasuredOn, ...], Field(strict=False, min_length=1)] = ("clients", "server")
    examples: Annotated[int, Field(ge=1)] = 500
    normalisation: Normalisation = "interpolate"
    tolerance: Annotated[float, Field(gt=0)] | None = None
    precision: Precision = "float32"
    bands: Annotated[float, Field(ge=0, lt=1)] = 0.95
    measures: Annotated[tuple[MeasureName, ...], Field(strict=False)] = ("distances",)
    matching: Annotated[tuple[MatchedBy, ...], Field(strict=False, min_length=1)] = ("none",)
    path: Annotated[tuple[PathName, ...], Field(strict=False, min_length=1)] = (FACTORS,)

    @field_validator("groups", "on", "measures", "matching", "path", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("precision")
    @classmethod
    def _with_tolerance(cls, value: str, info: ValidationInfo) -> str:
        if value != "float32" and "tolerance" in info.data and info.data["tolerance"] is None:
            raise ValueError("needs a tolerance; add barriers.tolerance = 0.01")
        return value

    @field_validator("matching", "path")
    @classmethod
    def _each_once(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            every = get_args(MatchedBy if info.field_name == "matching" else PathName)
            raise ValueError(f"must hold each of {', '.join(every[:-1])} and {every[-1]} once at most")
        return value

    @field_validator("path")
    @classmethod
    def _path_of_measures(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        mixing = [name for name in info.data.get("measures", ()) if name in BY_FACTORS]
        if mixing and FACTORS not in value:
            raise ValueError(f'must hold "factors", along which {mixing[0]} mixes; add it, or leave out {mixing[0]}')
        return value

    @field_validator("measures")
    @classmethod
    def _measurable(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must hold each once at most")
        for name in value:
            if info.data.get("examples", least := MEASURES[name].least_examples) < least:
                raise ValueError(
                    f"examples = {info.data['examples']} must be at least {least} where measures hold {name}"
                )
            if MEASURES[name].of_pairs and not info.data.get("pairs", 1):
                raise ValueError(f"pairs = 0 must be at least 1 where measures hold {name}, which compares clients")
        on_data = [name for name in value if MEASURES[name].on_data]
        if on_data and set(info.data.get("on", ())) == {"clients"}:
            names = ", ".join(on_data)
            raise ValueError(f"on 'clients' only barriers are measured, not {names}; add 'server' to barriers.on")
        return value
