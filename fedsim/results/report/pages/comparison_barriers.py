"""The sections of a comparison about the barriers of its runs, one for each kind of data."""

from collections.abc import Mapping

import pandas as pd

from fedsim.results.measured import Kind, by_kind
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.drawing.barriers import compared_barriers
from fedsim.results.report.pages.analysis import barrier_text, missing_text, titled
from fedsim.results.report.pages.pictured import pictured
from fedsim.results.report.pages.section import Section


def barrier_sections(groups: Mapping[str, Group]) -> list[Section]:
    """Return a section for each kind of data on which barriers were measured, the clients' own first.

    Barriers are means over clients and seeds.
    """
    measured = [
        result.barriers.assign(group_name=name)
        for name, group in groups.items()
        for result in group.members
        if len(result.barriers)
    ]
    kinds = by_kind(pd.concat(measured, ignore_index=True)) if measured else {}
    return [_section(kind, kinds) for kind in kinds]


def _section(kind: Kind, kinds: Mapping[Kind, pd.DataFrame]) -> Section:
    rows = kinds[kind]
    text = barrier_text(rows, "loss", "mean over the clients and seeds") + missing_text(rows["loss"])
    tables = {
        str(name): part.dropna(axis="columns", how="all") for name, part in rows.groupby("group_name", sort=False)
    }
    return titled(pictured("barriers", "Layer-wise barriers", text, compared_barriers(tables, "loss")), kind, kinds)
