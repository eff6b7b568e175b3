"""The chart of each client before and after training on its own data."""

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd
from altair.vegalite.v6.api import ChartType

from fedsim.results.report.charts.compact import chart_of
from fedsim.results.report.charts.parts import Axis, Scale, Tooltip
from fedsim.results.report.charts.theme import LOSS_FORMAT, SHARE_FORMAT
from fedsim.results.report.drawing.before_after import MANY_CLIENTS, MODELS, TITLES, trained_end
from fedsim.results.report.drawing.style import short
from fedsim.results.report.palette import COLOURS
from fedsim.training.metrics import label, metric_of

# Of each model: the colour and shape of its points.
POINTS = {
    "global": ("#808080", "M-1,-0.2H1V0.2H-1Z"),  # a dash with an area, as marks are filled
    "personalised": (COLOURS[0], "circle"),
    "trained": (COLOURS[2], "triangle-up"),
    "fine-tuned": (COLOURS[1], "diamond"),
    "knn": (COLOURS[3], "square"),
}
HEIGHT, WIDTH = 240, 320  # pixels of a panel


def before_after_chart(
    panels: Mapping[str, pd.DataFrame], metric: str, origins: Sequence[str] = ()
) -> ChartType | None:
    """Return a panel for each kind of data, clients sorted by their model as received; None if there is no value.

    Parameters
    ----------
    panels
        Values by client (rows) and model (columns), by the data that they were measured on.
    origins
        Name of each client's origin; empty if they have none.
    """
    used = [model for model in MODELS if any(model in values for values in panels.values())]
    shown = [
        _panel(values, used, metric, TITLES[data], origins)
        for data, values in panels.items()
        if values.notna().any(axis=None)
    ]
    if not shown:
        return None
    return alt.hconcat(*shown).resolve_scale(y="shared") if len(shown) > 1 else shown[0]


def _panel(values: pd.DataFrame, used: Sequence[str], metric: str, title: str, origins: Sequence[str]) -> ChartType:
    names = [MODELS[model] for model in used]
    clients = values.index.astype(int).tolist()
    rows = [
        {"i": client, "m": used.index(str(model)), "v": value} | ({"o": short(origins[client])} if origins else {})
        for client, (_, row) in zip(clients, values.astype(float).iterrows(), strict=True)
        for model, value in row.dropna().items()
    ]
    share = metric_of(metric).unit == "share"
    few = len(values) <= MANY_CLIENTS
    x = alt.X(
        "i:O",
        title="client, sorted by its model as received",
        sort=clients,
        axis=Axis(labels=few, ticks=few, labelAngle=0, labelOverlap=True),
    )
    written = SHARE_FORMAT if share else LOSS_FORMAT
    scale = Scale(domain=[0, 1]) if share else Scale(zero=False)
    y = alt.Y("v:Q", title=label(metric), scale=scale, axis=Axis(format=written))
    looks = [POINTS[model] for model in used]
    points = (
        chart_of(pd.DataFrame(rows), m=names)
        .mark_point(size=70, filled=True, opacity=0.9, strokeWidth=2)
        .encode(
            x=x,
            y=y,
            color=alt.Color("m_name:N", title=None, scale=Scale(domain=names, range=[each for each, _ in looks])),
            shape=alt.Shape("m_name:N", title=None, scale=Scale(domain=names, range=[each for _, each in looks])),
            tooltip=[
                Tooltip("i:O", title="client"),
                *([Tooltip("o:N", title="origin")] if origins else []),
                Tooltip("m_name:N", title="model"),
                Tooltip("v:Q", title=label(metric), format=".1~%" if share else ".4~g"),
            ],
        )
    )
    end = trained_end(values)
    layers = [points]
    if end in values:
        both = values[["personalised", end]].astype(float).dropna()
        lines = pd.DataFrame({"i": both.index.astype(int), "v": both["personalised"], "w": both[end]})
        rule = alt.Chart(lines.reset_index(drop=True)).mark_rule(strokeWidth=1.5, opacity=0.6)
        layers.insert(0, rule.encode(x=x, y=y, y2=alt.Y2("w:Q")))
    return alt.layer(*layers, title=title, width=WIDTH, height=HEIGHT)
