"""The chart of a partition: which client holds what."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.vegalite.v6.api import ChartType

from fedsim.data.heterogeneity import Heterogeneity
from fedsim.results.report.charts.compact import axis_scale, chart_of, distinct
from fedsim.results.report.charts.parts import WHOLE, Axis, Legend, Scale, Tooltip
from fedsim.results.report.drawing.partition import histogram_edges, is_small, is_wide
from fedsim.results.report.palette import COLOURS

WIDTH, HALF, BAR, ROW = 640, 300, 110, 22  # pixels; of a class, fewer where there are many
SMALLEST_BUBBLE, LARGEST_BUBBLE = 6, 480  # square pixels; of none and of most
LABELS = 70  # pixels of the names of classes, which both charts keep free so that clients are below each other


def partition_chart(measured: Heterogeneity) -> ChartType:
    """Return each client's labels as bubbles below its size; of many clients or classes, how the clients are spread."""
    return _bubbles(measured) if is_small(measured) else _histograms(measured)


def _bubbles(measured: Heterogeneity) -> alt.VConcatChart:
    counts = measured.counts
    owners = np.repeat(np.arange(len(measured)), np.diff(counts.offsets))
    held = pd.DataFrame({"i": owners, "l": counts.labels.astype(int), "c": counts.counts.astype(int)})
    classes = distinct(measured.classes)
    sizes = pd.DataFrame({"i": range(len(measured)), "n": measured.sizes.astype(int)})
    origins, origin = distinct(measured.origins), list[Tooltip]()
    if origins:
        held, sizes = held.assign(o=[origins[client] for client in owners]), sizes.assign(o=origins)
        origin = [Tooltip("o:N", title="origin")]
    clients = list(range(len(measured)))

    def x(*, labelled: bool) -> alt.X:
        axis = Axis(labels=labelled, ticks=labelled, labelAngle=0, labelOverlap=True)
        title = "client" if labelled else None
        return alt.X("i:O", title=title, scale=Scale(domain=clients), axis=axis)

    room: dict[str, Any] = {"minExtent": LABELS, "labelLimit": LABELS - 8}
    client = Tooltip("i:O", title="client")
    bars = (
        alt.Chart(sizes)
        .mark_bar(color=COLOURS[0])
        .encode(
            x=x(labelled=False),
            y=alt.Y("n:Q", title="examples", axis=Axis(format="~s", tickCount=4, **room)),
            tooltip=[client, *origin, Tooltip("n:Q", title="examples", format=",d")],
        )
        .properties(width=WIDTH, height=BAR)
    )
    bubbles = (
        chart_of(held, l=classes)
        .mark_circle(color=COLOURS[0], opacity=0.85)
        .encode(
            x=x(labelled=True),
            y=alt.Y("l_name:N", title="class", scale=Scale(domain=classes), axis=Axis(grid=True, **room)),
            size=alt.Size(
                "c:Q",
                scale=Scale(domain=[0, int(counts.counts.max(initial=1))], range=[SMALLEST_BUBBLE, LARGEST_BUBBLE]),
                legend=Legend(title="examples of the class", tickCount=4, symbolFillColor=COLOURS[0]),
            ),
            tooltip=[
                client,
                *origin,
                Tooltip("l_name:N", title="class"),
                Tooltip("c:Q", title="examples", format=",d"),
            ],
        )
        .properties(width=WIDTH, height=max(8, min(ROW, 700 // len(classes))) * max(2, len(classes)))
    )
    return alt.vconcat(bars, bubbles, spacing=8)


def _histograms(measured: Heterogeneity) -> alt.ConcatChart:
    defined = {name: values[~np.isnan(values)] for name, values in measured.by_client.items()}
    return alt.concat(*(_histogram(name, values) for name, values in defined.items() if len(values)), columns=2)


def _histogram(name: str, values: np.ndarray) -> ChartType:
    edges = histogram_edges(values)
    found, _ = np.histogram(values, edges)
    rows = pd.DataFrame({"a": edges[:-1], "b": edges[1:], "c": found})
    x = alt.X("a:Q", title=name, scale=axis_scale(log=is_wide(values), nice=False), axis=Axis(format="~g"))
    span = "format(datum.a, '.3~g') + ' to ' + format(datum.b, '.3~g')"
    bars = (
        alt.Chart(rows)
        .transform_calculate(span=span)
        .mark_bar(color=COLOURS[0])
        .encode(
            x=x,
            x2=alt.X2("b:Q"),
            y=alt.Y("c:Q", title="clients", axis=Axis(**WHOLE)),
            tooltip=[Tooltip("span:N", title=name), Tooltip("c:Q", title="clients", format=",d")],
        )
    )
    mean = alt.Chart(pd.DataFrame({"m": [float(values.mean())]}))
    line = mean.mark_rule(color=COLOURS[1], strokeDash=[5, 4], strokeWidth=1.5)
    line = line.encode(x=alt.X("m:Q"), tooltip=[Tooltip("m:Q", title="mean", format=".4~g")])
    return alt.layer(bars, line, title=f"mean {values.mean():.4g}", width=HALF, height=BAR + 30)
