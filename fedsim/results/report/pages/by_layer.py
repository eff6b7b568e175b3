"""The parts of a page about layers and clients: the layer strip, the client explorer, bytes by layer and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedsim.results.report.charts.client_records import client_records
from fedsim.results.report.charts.clients import client_explorer
from fedsim.results.report.charts.layer_costs import (
    VIEWS,
    LayerCosts,
    cost_claims,
    cost_sentence,
    layer_costs,
    level_of,
    shows_anything,
)
from fedsim.results.report.charts.layer_strip import MOST_STRIPS, layer_strip, widths_are_known
from fedsim.results.report.charts.seconds import round_seconds, run_seconds, seconds_of_runs
from fedsim.results.report.charts.traffic import bytes_by_layer, traffic_chart
from fedsim.results.report.comparing.costs import untimed
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.pairs import Baseline
from fedsim.results.report.comparing.small_clients import counts_targets
from fedsim.results.report.comparing.units import how_many
from fedsim.results.report.drawing import plotting
from fedsim.results.report.pages import how_to_read
from fedsim.results.report.pages.schedule import sent_layers
from fedsim.results.report.pages.section import Section
from fedsim.training.metrics import label

STRIP_TEXT = (
    "Layers from input (left) to output{widths}. Colour: {whose} with the layer's average, minus the loss of the "
    "client's own model; mean over the clients{seeds}. Below, 95 % intervals over {over}; a line marks layers that "
    "clients sent."
)
WHOSE = {
    "clients": "the client's loss on its own test data",
    "train": "the loss of its model on all clients' training data",
    "server": "the loss of its model on the server's test data (the clients' own view was not measured)",
}
MOST_SENTENCES = 6
CLIENTS_TEXT = (
    "Each point is a client after the last round: its {what} against its training examples, or against the "
    "entropy of its labels. Click a point for the client's labels and curve; shift-click adds one{more}."
)
TRAFFIC_TEXT = "Bytes sent up and down, by layer: what a strategy shares, and whatever else it sends{seeds}."
TIME_TEXT = "Wall seconds of {what}, by part: training, evaluation, analysis (such as barriers) and aggregation."


def strip_section(groups: Mapping[str, Group], name: str = "strip") -> Section | None:
    """Return the layer strips of runs by their names, from the clients' view where it was measured in any of them."""
    costs = _one_view({each: layer_costs(group.members) for each, group in groups.items()}, groups)
    sent = {each: sent_layers(groups[each].members[0]) for each in costs}
    chart = layer_strip(costs, sent)
    if chart is None:
        return None
    first = next(iter(costs.values()))
    seeds = max(each.seeds for each in costs.values())
    over = next(iter(overs)) if len(overs := {each.over for each in costs.values()}) == 1 else "seeds or clients"
    text = STRIP_TEXT.format(
        widths=", as wide as their bytes" if all(map(widths_are_known, costs.values())) else "",
        whose=WHOSE[first.view],
        seeds=" and seeds" if seeds > 1 else "",
        over=over,
    )
    title = "What averaging each layer costs"
    text += _limits(costs, groups)
    return Section(name, title, text, None, chart, how_to_read.STRIP, findings=_findings(costs))


def _one_view(found: Mapping[str, LayerCosts | None], groups: Mapping[str, Group]) -> dict[str, LayerCosts]:
    """Return the costs that were measured on the same data: on the clients' where some were."""
    known = {name: each for name, each in found.items() if each is not None}
    views = [each.view for each in known.values()]
    view = next((each for each in VIEWS if each in views), None)
    same = {
        name: each if each.view == view else layer_costs(groups[name].members, view) for name, each in known.items()
    }
    return {name: each for name, each in same.items() if each is not None}


def _findings(costs: Mapping[str, LayerCosts]) -> list[str]:
    """Say what averaging costs: of one setting in a sentence, of several by what is clear."""
    if len(costs) == 1:
        return [cost_sentence(next(iter(costs.values())))]
    last = {name: found.rows["round"].max() for name, found in costs.items()}
    clear = [name for name, found in costs.items() if shows_anything(found, last[name])]
    texts = [f"{name}: {cost_claims(costs[name], last[name], together=False)}." for name in clear[:MOST_SENTENCES]]
    if more := len(clear) - MOST_SENTENCES:
        texts += [f"{more} more settings show a cost or a gain: see the strips."] if more > 0 else []
    if unclear := [name for name in costs if name not in clear]:
        shown, others = "; ".join(unclear[:MOST_SENTENCES]), len(unclear) - MOST_SENTENCES
        texts.append(f"No layer shows a clear cost or gain for {shown}{f'; and {others} more' if others > 0 else ''}.")
    levels = {level_of(found) for found in costs.values()}
    level = levels.pop() if len(levels) == 1 else "95 % intervals"
    return [*texts, f"These are {level}, after the last measured round."]


def _limits(costs: Mapping[str, LayerCosts], groups: Mapping[str, Group]) -> str:
    text = ""
    if missing := int(sum(each.rows["missing"].sum() for each in costs.values())):
        text += f" Left out: {missing} values that are not finite."
    if len(costs) > MOST_STRIPS:
        text += f" The first {MOST_STRIPS} of {len(costs)} settings are shown."
    if unmeasured := len(groups) - len(costs):
        text += f" {unmeasured} of {len(groups)} settings did not measure it."
    return text


def client_section(
    groups: Mapping[str, Group], metric: str, draw: Callable[[], plotting.Figure], baseline: Baseline | None = None
) -> Section:
    """Return the client explorer of runs by their names.

    Parameters
    ----------
    metric
        What is compared.
    draw
        Draws the figure of the PDF and PNG files.
    baseline
        Runs that gains are over; without them, values are shown.
    """
    found = client_records([group.members for group in groups.values()], baseline, metric)
    over = baseline.name if baseline and found.points["d"].notna().any() else ""
    chart = client_explorer(found, groups, metric, over=over)
    what = f"gain over {over} in {label(metric)}" if over else label(metric)
    text = CLIENTS_TEXT.format(what=what, more="" if len(groups) == 1 else "; click a name to isolate a strategy")
    if any(counts_targets(result) for group in groups.values() for result in group.members):
        text += " Examples with several labels, as sequences, are counted as labels."
    if over:
        text += f" Clients without a run of {over} with the same partition and seed are not shown."
    if found.left_out:
        text += f" {found.left_out} runs of further seeds are not shown, to keep the page small."
    if missing := int(found.points["v"].isna().sum()):
        text += f" Missing: {how_many(missing, 'client')} without a finite loss or not evaluated."
    gain = f", minus that of {over} with the same partition and seed" if over else ""
    title = f"Clients: {what} by size and labels"
    return Section("clients", title, text, draw, chart, how_to_read.CLIENTS.format(gain=gain))


def traffic_section(groups: Mapping[str, Group], name: str = "bytes-by-layer") -> Section | None:
    """Return the bytes by layer of runs by their names; None if nothing travelled."""
    chart = traffic_chart({each: bytes_by_layer(group.members) for each, group in groups.items()})
    text = TRAFFIC_TEXT.format(seeds="" if len(groups) == 1 else "; mean over the seeds")
    return Section(name, "Bytes by layer", text, None, chart, how_to_read.TRAFFIC) if chart else None


def time_section(groups: Mapping[str, Group], name: str = "seconds") -> Section | None:
    """Return the time of one run by round, or of several runs; None if no time is known."""
    runs = [result for group in groups.values() for result in group.members]
    if len(runs) == 1:
        chart, what = round_seconds(runs[0]), "each round"
    else:
        chart = run_seconds({each: seconds_of_runs(group.members) for each, group in groups.items()})
        what = "all rounds, mean over the seeds"
    text = TIME_TEXT.format(what=what)
    if lost := sum(map(len, map(untimed, runs))):
        text += f" The time of {how_many(lost, 'round')} is lost and not included."
    return Section(name, "Time", text, None, chart, how_to_read.TIME) if chart else None
