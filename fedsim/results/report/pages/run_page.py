"""The page about one run."""

import json
import math
from functools import partial
from pathlib import Path

from fedsim.config.local import LocalConfig
from fedsim.data.heterogeneity import Heterogeneity, mean_of
from fedsim.results.best_round import reason_to_stop, validation_means
from fedsim.results.faults import describe_faults
from fedsim.results.files import write_whole
from fedsim.results.report.charts.curve_data import curves_of_run
from fedsim.results.report.charts.curves import curves
from fedsim.results.report.charts.partition import partition_chart
from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.export import as_latex, as_markdown
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.statistics import worst_mean
from fedsim.results.report.comparing.units import format_bytes, format_missing
from fedsim.results.report.drawing import figures
from fedsim.results.report.drawing.partition import partition
from fedsim.results.report.pages import how_to_read
from fedsim.results.report.pages.analysis import analysis_sections
from fedsim.results.report.pages.by_layer import client_section, strip_section, time_section, traffic_section
from fedsim.results.report.pages.citation import bibtex
from fedsim.results.report.pages.configuration import changed_settings, running_command
from fedsim.results.report.pages.evaluation import (
    OVER_CLIENTS,
    evaluation_note,
    evaluation_sections,
    evaluation_table,
)
from fedsim.results.report.pages.html import unchecked, write_page
from fedsim.results.report.pages.schedule import schedule_sections
from fedsim.results.report.pages.section import Section
from fedsim.results.result import Result
from fedsim.results.variances import describe_variances
from fedsim.training.metrics import format_metric, label, metric_of


@unchecked
def write_run(result: Result, out: Path, *, export: bool = False) -> Path:
    """Write the page about one run into the folder ``out``; return its path.

    Parameters
    ----------
    export
        Whether to write its figures and its table as files, too.
    """
    table = evaluation_table(result)
    content = {
        "title": f"{result.strategy} on {result.data}",
        "subtitle": _subtitle(result),
        "verdict": [_sentence(result)],
        "lights": [{"level": "warning", "text": text} for text in _warnings(result)],
        "numbers": _headline(result),
        "tables": [
            {
                "title": f"{label(result.main, capital=True)} by model and data",
                "table": table,
                "note": evaluation_note(result),
                "copies": [("latex", "LaTeX"), ("markdown", "Markdown")],
            }
        ],
        "details": [
            ("Settings that differ from their defaults", changed_settings(result)),
            ("All settings", result.folder.config.read_text(encoding="utf-8")),
            *([("Layers", json.dumps(model, indent=1))] if (model := result.folder.read_model()) else []),
            ("Environment", json.dumps(result.folder.read_env(), indent=1)),
        ],
        "copied": [("This run again:", running_command(result)), ("BibTeX:", bibtex([result]))],
    }
    texts = {"latex": as_latex(table, OVER_CLIENTS), "markdown": as_markdown(table)}
    if export:
        write_whole(out / "evaluation.md", texts["markdown"])
        write_whole(out / "evaluation.tex", texts["latex"])
    return write_page(out, content, _run_sections(result), {"texts": texts}, export=export)


def _warnings(result: Result) -> list[str]:
    """Return what weakens the run's numbers."""
    return [*describe_faults(result.faults, result.updates), *describe_variances(result.variances)]


def _sentence(result: Result) -> str:
    """Return what the run achieved, in a sentence."""
    every = result.by_client("personalised").astype(float)
    values = every.dropna()
    of_server = float(result.on_server("global").loc[result.evaluated])
    write = partial(format_metric, result.main)
    if values.empty:
        return f"After round {result.evaluated}, no client has a value."
    least, most = sorted((values.min(), values.max()))
    ends = f"from {write(least)} to {write(most)}" if len(values) > 1 else "of one client"
    models = (
        f"After round {result.evaluated}, the {len(every)} clients' own models have a mean {label(result.main)} of "
        f"{write(values.mean())}{format_missing(len(every) - len(values))} on their own test data, {ends}"
    )
    server = "" if math.isnan(of_server) else f"; the global model has {write(of_server)} on the server's test data"
    traffic = format_bytes(result.bytes_total) if result.bytes_total else "nothing"
    return f"{models}{server}. The clients sent and received {traffic}."


def _headline(result: Result) -> list[tuple[str, str]]:
    """Return the numbers at the top of a run's page, with their labels."""
    personalised = result.by_client("personalised").astype(float)
    known = personalised.dropna()
    main = label(result.main)
    write, is_higher = partial(format_metric, result.main), metric_of(result.main).higher_is_better
    missing = format_missing(len(personalised) - len(known))
    of_server = float(result.on_server("global").loc[result.evaluated])
    at_least = "at least " if costs.untimed(result) else ""
    numbers = [
        (
            f"personalised {main}, mean ± std over clients",
            f"{write(known.mean())} ± {write(known.std(ddof=0))}{missing}" if len(known) else "missing",
        ),
        (
            f"personalised {main}, worst 10 % of clients",
            f"{write(worst_mean(known.to_numpy(), higher_is_better=is_higher))}{missing}" if len(known) else "missing",
        ),
        (f"global {main}, server's test data", "missing" if math.isnan(of_server) else write(of_server)),
        ("traffic, up and down", format_bytes(result.bytes_total)),
        ("wall time of the rounds", f"{at_least}{result.seconds_total:.0f} s"),
    ]
    if len(result.simulated_seconds):
        numbers.append(("simulated time of the rounds", f"{result.simulated_seconds.sum():.4g} s"))
    if analysis := result.seconds_of("barriers"):
        share = analysis / result.seconds_total
        numbers.append(("wall time of the analysis, share of the rounds'", f"{analysis:.3g} s, {share:.0%}"))
    if model := result.folder.read_model():
        trained, every = model["trainable"], model["all_parameters"]
        parameters = f"{trained:,}" if trained == every else f"{trained:,} of {every:,} ({100 * trained / every:.3g} %)"
        numbers.append(("parameters that train", f"{parameters}, {format_bytes(model['trainable_bytes'])}"))
    return numbers


def _run_sections(result: Result) -> list[Section]:
    one = {result.strategy: Group(result.strategy, {}, [result])}
    sections = [
        Section(
            "curves",
            f"{label(result.main, capital=True)} and loss over the rounds",
            "Personalised: each client's own model right after it received the server's layers. Global: the server's "
            "model. Rounds in which a client's value is missing are gaps.",
            partial(figures.curves, result),
            curves(curves_of_run(result)),
            how_to_read.CURVES,
        ),
        strip_section(one),
        *schedule_sections(result),
        *analysis_sections(result),
        client_section(one, result.main, partial(figures.clients, result)),
        *evaluation_sections(result),
        traffic_section(one),
        time_section(one),
        _partition_section(result.heterogeneity),
    ]
    return [section for section in sections if section is not None]


def _partition_section(measured: Heterogeneity) -> Section:
    text = (
        f"Training, validation and test examples of each client: {measured.sizes.min():,} to "
        f"{measured.sizes.max():,} examples, on average {mean_of(measured.counts.effective_classes()):.1f} effective "
        f"classes of {len(measured.classes)} and {mean_of(measured.counts.largest_shares()):.0%} of the "
        f"examples in the largest, mean total variation from the pooled labels "
        f"{mean_of(measured.counts.total_variation()):.2f} (0: all alike, towards 1: no class in common), mean "
        f"Jensen-Shannon divergence {mean_of(measured.counts.jensen_shannon()):.2f} nats (at most 0.69)."
    )
    if measured.unlabelled:
        text += f" Clients without labels, left out of these means: {measured.unlabelled:,}."
    drawn = partial(partition, measured)
    return Section("partition", "Partition", text, drawn, partition_chart(measured), how_to_read.PARTITION)


def _training(local: LocalConfig) -> str:
    optimizer = "" if local.optimizer == "sgd" else f"{local.optimizer} with "
    schedule = "" if local.schedule == "constant" else f", {local.schedule} schedule"
    sizes = f"epochs {local.epochs}, batches of {local.batch_size}"
    return f"local training: {sizes}, {optimizer}lr {local.lr:g}{schedule}"


def _subtitle(result: Result) -> str:
    config = result.config
    options = ", ".join(f"{key} = {value}" for key, value in config.partition.options.items())
    scheme = config.partition.scheme + (f" ({options})" if options else "")
    parts = [
        f"{config.clients} clients, {scheme}",
        f"model {config.model.name}",
        f"{result.evaluated} of {config.rounds} rounds",
        f"participation {config.participation:g}",
        _training(config.local),
        f"seed {config.seed}",
    ]
    if config.stop.by:
        metric = result.meant(config.stop.metric)
        means = validation_means(result.metrics.to_dict("records"), metric)
        reason = reason_to_stop(means, config.stop, metric) if result.evaluated < config.rounds else None
        parts += [f"stopped early: {reason}"] if reason else []
    return "; ".join(parts)
