"""Layers as a map of a transformer: a row for each of its repeated blocks, a column for each module in them."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from fedsim.results.report.drawing.barriers import (
    REFERENCES,
    at_the_middle,
    first_reference,
    last_round,
    quantity,
    rows_of_kind,
)
from fedsim.results.report.drawing.heat_maps import HeatMaps

# A layer in a block: what comes before the block's number, the number, and the layer's path in the block.
IN_BLOCK = re.compile(r"(|.*?[._])(\d+)\.([^*|!()\[\]? ]+)")
# What is added to a layer by an adapter.
FACTOR = re.compile(r"\.(lora_[A-Za-z_]+|ia3_l|vera_lambda_[bd])(?:\.[^.]+)?$")
FACTORS = {"": "both factors", "lora_A": "first factors, A", "lora_B": "second factors, B"}
LEAST_SHARE = 0.5  # of the layers that must be in blocks


class _Place(NamedTuple):
    """Where a layer is: in which block, under which path, and which factor of an adapter it is, if it is one."""

    family: str
    block: int
    module: str
    factor: str


def block_map(rows: pd.DataFrame, metric: str) -> HeatMaps | None:
    """Return the barriers of single layers in the last round by block and module; None without repeated blocks.

    Parameters
    ----------
    rows
        Table of `fedsim.analysis.barriers` with a column ``round``.
    metric
        ``loss`` or ``error``.
    """
    chosen = at_the_middle(rows_of_kind(last_round(rows), ""), pairs=False)
    reference = first_reference(rows, metric)
    by_factor = by_block(chosen.groupby("group", sort=False)[f"{metric}_{reference}"].mean())
    tables = {}
    for factor, table in by_factor.items():
        title = FACTORS.get(factor, factor) if any(by_factor) else "layers"
        tables[f"{title},\nminus {REFERENCES[reference]} {metric}"] = table
    return HeatMaps(tables, quantity(metric, rows), columns="module", rows="block") if tables else None


def by_block(values: pd.Series) -> dict[str, pd.DataFrame]:
    """Return values by block and module; empty without repeated blocks.

    Parameters
    ----------
    values
        Values by the name of a layer; those of other groups are left out.

    Returns
    -------
    tables
        Blocks by modules, for each factor of adapters; whole layers are first and called ``""``.
    """
    places = _places([str(name) for name in values.index])
    modules = short_names(list(dict.fromkeys(place.module for place in places.values())))
    tables = {}
    for factor in sorted({place.factor for place in places.values()}):
        of_factor = {name: place for name, place in places.items() if place.factor == factor}
        blocks = sorted({place.block for place in of_factor.values()})
        columns = [short for module, short in modules.items() if any(p.module == module for p in of_factor.values())]
        table = tables[factor] = pd.DataFrame(index=blocks, columns=columns, dtype=float)
        for name, place in of_factor.items():
            table.loc[place.block, modules[place.module]] = values[name]
    return tables


def short_names(modules: Sequence[str]) -> dict[str, str]:
    """Return each path's shortest end that no other path has, and that is more than a number."""
    parts = {module: module.split(".") for module in modules}
    ends = Counter(".".join(each[-k:]) for each in parts.values() for k in range(1, len(each) + 1))
    return {
        module: next(
            (end for k in range(1, len(each)) if ends[end := ".".join(each[-k:])] == 1 and not each[-k].isdigit()),
            module,
        )
        for module, each in parts.items()
    }


def _places(names: Sequence[str]) -> dict[str, _Place]:
    """Return the places of the layers in the repeated blocks; empty if most layers are in none."""
    found, single = {}, [name for name in names if name != "full"]
    for name in single:
        factor = FACTOR.search(name)
        if match := IN_BLOCK.fullmatch(name[: factor.start()] if factor else name):
            found[name] = _Place(match[1], int(match[2]), match[3], factor[1] if factor else "")
    families = Counter(place.family for place in found.values())
    if not families:
        return {}
    family, count = families.most_common(1)[0]
    places = {name: place for name, place in found.items() if place.family == family}
    several = [len({getattr(place, part) for place in places.values()}) > 1 for part in ("block", "module")]
    return places if count >= LEAST_SHARE * len(single) and all(several) else {}
