"""The client explorer: what each client gains against its size and labels, and, on a click, its labels and curve."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.vegalite.v6.api import ChartType

from fedsim.results.differences import short_key
from fedsim.results.report.charts.client_records import ClientRecords
from fedsim.results.report.charts.compact import chart_of, distinct, significant, values_of
from fedsim.results.report.charts.parts import WHOLE, Axis, Legend, Scale, Tooltip
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.palette import COLOURS, looks
from fedsim.training.metrics import label, metric_of

SIZE, ENTROPY = "training examples", "label entropy (nats)"
WIDTH, HALF, HEIGHT, BELOW = 640, 280, 260, 160  # pixels
MIDDLE = "#808080"  # visible on a light and on a dark page
MOST_CLASSES = 40  # that stay on the axis, whatever the chosen client has
MOST_LETTERS = 60  # of names that stand side by side


def client_explorer(
    found: ClientRecords, groups: Mapping[str, Group], metric: str, *, over: str = ""
) -> alt.VConcatChart | None:
    """Return the linked charts of clients; None if there is no client with a value.

    Parameters
    ----------
    groups
        The runs by their names, in the order of the groups of ``found``.
    metric
        What the values are.
    over
        Name of the baseline that gains are over; where it is empty, values are shown.
    """
    points = found.points.assign(y=found.points["d" if over else "v"]).dropna(subset=["y"])
    if points.empty:
        return None
    # A click on a legend, or next to a point, leaves the chosen client: without one, scales would be infinite.
    chooses = "click[event.item && event.item.datum && isValid(event.item.datum.k)]"
    lowest = int(points.sort_values("y")["k"].iloc[0])  # which asks for a look
    clicked = alt.selection_point(
        "client",
        fields=["k"],
        empty=False,
        value=[{"k": lowest}],
        on=chooses,
        clear=False,
    )
    chosen = alt.hconcat(_labels(found, clicked), _curve(found, distinct(list(groups), 60), metric, clicked))
    scatter = _scatter(points, list(groups.values()), metric, clicked, over)
    return alt.vconcat(scatter, chosen, spacing=24).resolve_scale(color="independent", shape="independent")


def _scatter(
    points: pd.DataFrame, groups: Sequence[Group], metric: str, clicked: alt.Parameter, over: str
) -> ChartType:
    which = alt.param("against", value=SIZE, bind=alt.binding_radio(options=[SIZE, ENTROPY], name="horizontal axis: "))
    isolated = alt.selection_point("run", fields=["m_name"], bind="legend")
    # A strategy keeps its colour at every setting; the shape shows the setting.
    strategies = list(dict.fromkeys(group.label for group in groups))
    settings = list(dict.fromkeys(_settings(group) for group in groups))
    points = points.assign(
        m=[strategies.index(groups[g].label) for g in points["g"]],
        z=[settings.index(_settings(groups[g])) for g in points["g"]],
    )
    methods, situations = distinct(strategies, 48), distinct(settings, 60)
    colours = [each.colour for each in looks(strategies).values()]
    value = _percent(metric)
    scale = 100 if over and metric_of(metric).unit == "share" else 1
    base = chart_of(points.drop(columns=["g", "j", "y"]), m=methods, z=situations).transform_calculate(
        x=f"against == '{SIZE}' ? datum.n : datum.h", y=f"{scale} * datum.{'d' if over else 'v'}"
    )
    title, several = _title(metric, over, groups), len(situations) > 1
    tooltip = _tooltip(metric, title if over else "", several=several, named="o" in points)
    shape = alt.Shape("z_name:N", sort=situations, legend=Legend(title=None, symbolFillColor=MIDDLE))
    dots = (
        base.transform_filter(isolated)  # what is only pale would still be in front of others
        .mark_point(filled=True, size=70, cursor="pointer")
        .encode(
            x=alt.X("x:Q", title=None, scale=Scale(zero=False, nice=True)),
            y=alt.Y("y:Q", title=title, scale=Scale(zero=False), axis=Axis(format="+.4~g" if over else value)),
            color=alt.Color(
                "m_name:N",
                scale=Scale(domain=methods, range=colours),
                legend=Legend(title=None) if len(methods) > 1 else None,
            ),
            **({"shape": shape} if several else {}),
            opacity=alt.OpacityValue(0.8),
            stroke=alt.StrokeValue(**alt.condition(clicked, alt.value(COLOURS[1]), alt.value("transparent"))),
            strokeWidth=alt.StrokeWidthValue(**alt.condition(clicked, alt.value(3), alt.value(0))),
            tooltip=tooltip,
        )
        .add_params(which, isolated, clicked)
    )
    layers: list[Any] = [dots, _axis_title()]
    if over:
        layers.insert(0, alt.Chart({"values": [{"z": 0}]}).mark_rule(strokeDash=[4, 4]).encode(y=alt.Y("z:Q")))
    return alt.layer(*layers, width=WIDTH, height=HEIGHT)


def _tooltip(metric: str, gain: str, *, several: bool, named: bool) -> list[Tooltip]:
    """Return the lines of a client's tooltip.

    Parameters
    ----------
    gain
        What the vertical axis shows, where it is a gain.
    several
        Whether there are several settings.
    named
        Whether origins of clients have names.
    """
    return [
        Tooltip("i:Q", title="client"),
        *([Tooltip("o:N", title="origin")] if named else []),
        Tooltip("m_name:N", title="strategy"),
        *([Tooltip("z_name:N", title="setting")] if several else []),
        Tooltip("s:Q", title="seed"),
        Tooltip("n:Q", title="training examples", format=",d"),
        Tooltip("h:Q", title="label entropy (nats)", format=".3~f"),
        *([Tooltip("y:Q", title=gain, format="+.3~g")] if gain else []),
        Tooltip("v:Q", title=label(metric), format=_percent(metric)),
        Tooltip("t:Q", title="test examples", format=",d"),
    ]


def _axis_title() -> alt.Chart:
    """Return the title of the horizontal axis, which no axis can take from a switch."""
    return (
        alt.Chart({"values": [{"z": 0}]})
        .transform_calculate(t="against")
        .mark_text(fontSize=11, fontWeight="bold", align="right", baseline="top")
        .encode(x=alt.XValue("width"), y=alt.YValue(HEIGHT + 22), text=alt.Text("t:N"))
    )


def _labels(found: ClientRecords, clicked: alt.Parameter) -> alt.Chart:
    """Return the bars of the clicked client's labels."""
    names = distinct(found.classes)
    used = sorted({number for counts in found.labels.values() for number in counts})
    owners = found.points[["k", "j", "i"]].astype(int)
    # Also of clients without labels: flattening what is missing stops the chart.
    every = {int(j): found.labels.get(j, {}) for j in owners["j"].unique()}
    held = [{"j": j, "o": list(counts), "c": list(counts.values())} for j, counts in every.items()]
    most = max((count for counts in found.labels.values() for count in counts.values()), default=1)
    few = [names[number] for number in used] if len(used) <= MOST_CLASSES else None
    named = [{"o": number, "name": names[number]} for number in used]
    return (
        alt.Chart(values_of(owners), title="Labels of the chosen client")
        .transform_filter(clicked)
        .transform_lookup(lookup="j", from_=alt.LookupData(data={"values": held}, key="j", fields=["o", "c"]))
        .transform_flatten(["o", "c"])
        .transform_lookup(lookup="o", from_=alt.LookupData(data={"values": named}, key="o", fields=["name"]))
        .mark_bar(color=COLOURS[0])
        .encode(
            x=alt.X(
                "name:N",
                title=None,
                sort=few or alt.EncodingSortField("o", op="min"),
                scale=Scale(domain=few) if few else alt.Undefined,
                axis=Axis(labelLimit=90, labelOverlap=True, labelAngle=_angle(names[number] for number in used)),
            ),
            y=alt.Y("c:Q", title="examples", stack=None, scale=Scale(domain=[0, most])),
            xOffset=alt.XOffset("k:N"),
            tooltip=[
                Tooltip("i:Q", title="client"),
                Tooltip("name:N", title="class"),
                Tooltip("c:Q", title="examples", format=",d"),
            ],
        )
        .properties(width=HALF, height=BELOW)
    )


def _curve(found: ClientRecords, names: Sequence[str], metric: str, clicked: alt.Parameter) -> alt.Chart:
    """Return the curve of the clicked client over the rounds."""
    rows = pd.DataFrame(
        [
            {"k": k, "i": int(i), "s": int(s), "g": int(g), "v": significant(curve)}
            for (k, curve), i, s, g in zip(found.curves.items(), *(found.points[each] for each in "isg"), strict=True)
        ]
    )
    # Scales of all clients, which also hold where no client is chosen.
    values = np.array(list(found.curves.values()), dtype=float)
    spread = [float(np.nanmin(values)), float(np.nanmax(values))]
    rounds = [found.rounds[0], max(found.rounds[-1], found.rounds[0] + 1)]
    several = found.points["s"].nunique() > 1
    seed = " + ', seed ' + datum.s" if several else ""
    whose = f"'client ' + datum.i{seed} + ', ' + datum.g_name"
    return (
        chart_of(rows, g=names)
        .properties(title=f"{label(metric, capital=True)} of the chosen client by round")
        .transform_filter(clicked)
        .transform_flatten(["v"])
        .transform_window(place="row_number()", groupby=["k"])
        .transform_calculate(r=f"{list(found.rounds)}[datum.place - 1]", whose=whose)
        .transform_filter("isValid(datum.v)")
        .mark_line(point=True)
        .encode(
            x=alt.X("r:Q", title="round", axis=Axis(**WHOLE), scale=Scale(domain=rounds)),
            y=alt.Y("v:Q", title=label(metric), scale=Scale(domain=spread), axis=Axis(format=_percent(metric))),
            color=alt.Color("whose:N", title=None, legend=Legend(labelLimit=400)),
            detail=alt.Detail("k:Q"),
            tooltip=[
                Tooltip("whose:N", title="client"),
                Tooltip("r:Q", title="round"),
                Tooltip("v:Q", title=label(metric), format=_percent(metric)),
            ],
        )
        .properties(width=HALF, height=BELOW)
    )


def _percent(metric: str) -> str:
    return ".1~%" if metric_of(metric).unit == "share" else ".4~g"


def _settings(group: Group) -> str:
    return ", ".join(f"{short_key(key, group.settings)} = {value}" for key, value in group.settings.items())


def _title(metric: str, over: str, groups: Sequence[Group]) -> str:
    """Return what the vertical axis shows, in its unit."""
    if not over:
        return label(metric)
    chosen = metric_of(metric)
    # The loss of a regression is in the unit of its targets, squared or not.
    of_numbers = any(metric_of(run.main).unit == "number" for group in groups for run in group.members)
    unit = {"share": "percentage points", "nats": "" if of_numbers else "nats"}.get(chosen.unit, "")
    what = "gain over" if chosen.higher_is_better else "difference to"
    better = "" if chosen.higher_is_better else ", below 0 is better"
    return f"{what} {over}: {label(metric)}{f' ({unit})' if unit else ''}{better}"


def _angle(names: Iterable[str]) -> int:
    """Return how names are turned: not at all where they are short."""
    return 0 if sum(map(len, names)) < MOST_LETTERS else -45
