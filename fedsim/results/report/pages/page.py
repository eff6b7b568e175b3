"""Self-contained HTML pages: one per run, and one for a comparison. Their figures also as PDF and PNG."""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from fedsim.config.local import LocalConfig
from fedsim.data.heterogeneity import Heterogeneity
from fedsim.results.best_round import reason_to_stop, validation_means
from fedsim.results.faults import describe_faults
from fedsim.results.files import write_whole
from fedsim.results.measured import examples, of_first_kind
from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.export import as_latex, as_markdown
from fedsim.results.report.comparing.groups import Group, by_name, grouped
from fedsim.results.report.comparing.question import DEFAULT, Question
from fedsim.results.report.comparing.statistics import worst_mean
from fedsim.results.report.comparing.tables import comparison_table
from fedsim.results.report.comparing.units import format_bytes, format_missing
from fedsim.results.report.drawing import compared, figures
from fedsim.results.report.drawing.barriers import compared_barriers
from fedsim.results.report.drawing.partition import partition
from fedsim.results.report.drawing.style import save
from fedsim.results.report.pages.analysis import BARRIER_TEXT, analysis_sections, missing_text
from fedsim.results.report.pages.evaluation import evaluation_note, evaluation_sections, evaluation_table
from fedsim.results.report.pages.schedule import schedule_sections
from fedsim.results.report.pages.section import Section
from fedsim.results.result import Result
from fedsim.shortening import printable
from fedsim.strategy.faults import name_clients
from fedsim.training.metrics import format_metric, label, metric_of

TABLE_NOTE = (
    "Accuracies and shares of clients in percent, losses in nats per example. Values are means over seeds (see "
    '"seeds"); ± is the half-width of the 95 % confidence interval (Student\'s t) for two or more seeds. Personalised: '
    "each client's own model on its own test data, mean over the clients; std: standard deviation over the clients; "
    "worst 10 %: mean over the worst tenth of the clients, at least one; Jain: Jain's fairness index, 1 if all clients "
    "have the same value; global: the server's model on the server's test data; global, clients: on the clients' test "
    "data; fine-tuned: personalised models after further training on each client; unseen: clients that never take part "
    "in training; > local, > full: share of the clients whose personalised model is better than with local training "
    "only, or with plain averaging of all layers, for the same partition and seed, over all seeds; up, down: bytes of "
    "all clients up to the round shown; passes: a third of the examples passed forward plus two thirds of those passed "
    "backward in local training, which is the number of training examples for plain training; seconds: wall time up to "
    "the round shown. -: not measured, or never reached. (n missing): the number is without n values, of clients whose "
    "model has no finite loss or that could not be evaluated; left out: number of updates that are in no average."
)
BASELINE_NOTE = (
    " > {name} and vs {name}: share of the clients that gain, and mean difference, relative to the runs of {name} with "
    "the same partition, seed and other settings; pairs: number of seeds with such runs."
)
BEST_NOTE = (
    "As above, after the round in which the personalised models are best by mean {metric} on the clients' validation "
    "data; test data are never used for selection."
)
COSTS_NOTE = (
    "Mean over the clients of the personalised models on their own test data, in the last evaluated round within the "
    "budget{least}; and the cost at the first evaluated round that reaches the target. -: the first evaluated round "
    "exceeds the budget, or a seed never reaches the target."
)


def write_run(result: Result, out: Path, *, export: bool = False) -> Path:
    """Write the page about one run into the folder ``out``; return its path.

    Parameters
    ----------
    export
        Whether to write its figures and its table as files, too.
    """
    table = evaluation_table(result)
    details = [
        ("Configuration", result.folder.config.read_text()),
        *([("Layers", json.dumps(model, indent=1))] if (model := result.folder.read_model()) else []),
        ("Environment", json.dumps(result.folder.read_env(), indent=1)),
    ]
    content = {
        "title": f"{result.strategy} on {result.data}",
        "subtitle": _subtitle(result),
        "warnings": describe_faults(result.faults, result.updates),
        "numbers": _headline(result),
        "tables": [
            {
                "title": f"{label(result.main, capital=True)} by model and data",
                "table": table,
                "note": evaluation_note(result),
            }
        ],
        "details": details,
    }
    if export:
        for kind, written in (("md", as_markdown(table)), ("tex", as_latex(table))):
            write_whole(out / f"evaluation.{kind}", written)
    return _write(out, content, _run_sections(result), export)


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
        share = 100 * model["trainable"] / model["all_parameters"]
        parameters = f"{model['trainable']:,} of {model['all_parameters']:,} ({share:.3g} %)"
        numbers.append(("parameters that train", f"{parameters}, {format_bytes(model['trainable_bytes'])}"))
    return numbers


def write_partition(measured: Heterogeneity, title: str, path: Path) -> Path:
    """Write the figure of a partition as PDF and as PNG; return the latter's path."""
    figure = partition(measured, title)
    for kind in ("pdf", "png"):
        write_whole(path.with_name(f"{path.name}.{kind}"), save(figure, kind))
    return path.with_name(f"{path.name}.png")


def write_comparison(
    results: Sequence[Result], out: Path, question: Question = DEFAULT, *, export: bool = False
) -> Path:
    """Write the page that compares several runs into the folder ``out``; return its path.

    Raises
    ------
    ConfigError
        If the question cannot be answered with these runs.
    """
    groups = by_name(grouped(results, question.by))
    main = Question().of(results).metric
    name, shown = label(main), label(main, capital=True)
    sections = [
        Section(
            "accuracy",
            f"{shown} over the rounds",
            "Left: personalised models on the clients' own test data. Right: the server's model on the server's test "
            "data. Lines are means over the seeds; bands, shown for few lines, span the lowest to the highest seed.",
            partial(compared.compared_curves, groups),
        ),
        Section(
            "clients",
            f"Personalised {name} of each client",
            "Each point is a client of one seed after the last round. Boxes span the quartiles; their lines are the "
            "medians.",
            partial(compared.compared_clients, groups),
        ),
        Section(
            "traffic",
            f"{shown} by communication",
            "Bytes of all clients, up and down: the layers that a strategy shares, and all else that it sends.",
            partial(compared.compared_costs, groups, costs.BYTES),
        ),
    ]
    if any(costs.spent(result, costs.PASSES).notna().all() for result in results):
        text = (
            "A third of the examples passed forward plus two thirds of those passed backward in local training. A "
            "method that trains twice as much in a round moves twice as far to the right."
        )
        draw = partial(compared.compared_costs, groups, costs.PASSES)
        sections.append(Section("compute", f"{shown} by training", text, draw))
    sections += _barriers_of(groups)
    content = {
        "title": f"{len(results)} runs on {', '.join(sorted({result.data for result in results}))}",
        "subtitle": ", ".join(str(result.folder.path) for result in results),
        "tables": _tables(results, question),
        "details": [
            (f"Configuration of {name}", group.members[0].folder.config.read_text()) for name, group in groups.items()
        ],
    }
    return _write(out, content, sections, export)


def _tables(results: Sequence[Result], question: Question) -> list[dict[str, Any]]:
    """Return the tables at the last round, at the best one where there are validation data, and at equal costs."""
    note = TABLE_NOTE + (BASELINE_NOTE.format(name=question.baseline) if question.baseline else "")
    last = compare(results, replace(question, at="last"))
    at_cost = [column for column in last.columns if column.key.startswith("at_") or column.key.endswith("_to_target")]
    others = [column for column in last.columns if column not in at_cost]
    tables = [{"title": "Last round", "table": comparison_table(last, others), "note": note}]
    if not any(result.of("personalised", question.metric, "validation").empty for result in results):
        best = compare(results, replace(question, at="best"))
        keys = {column.key for column in others}
        shown = comparison_table(best, [column for column in best.columns if column.key in keys])
        tables.append(
            {"title": "Best round on validation data", "table": shown, "note": BEST_NOTE.format(metric=question.metric)}
        )
    if at_cost:
        defaults = not all(question.budgets.get(what) for what in costs.COSTS)
        least = " (by default, the smallest total of any of these runs)" if defaults else ""
        shown = comparison_table(last, at_cost)
        tables.append({"title": "At equal cost", "table": shown, "note": COSTS_NOTE.format(least=least)})
    return tables


def _barriers_of(groups: Mapping[str, Group]) -> list[Section]:
    """Return the section of the barriers, means over clients and seeds, where they were measured."""
    measured = {
        name: replace(members[0], barriers=pd.concat([result.barriers for result in members]))
        for name, group in groups.items()
        if (members := [result for result in group.members if len(result.barriers)])
    }
    if not measured:
        return []
    rows = pd.concat([of_first_kind(result.barriers) for result in measured.values()])
    text = BARRIER_TEXT.format(
        metric="loss", mean="mean over the clients and seeds", data=examples(rows, rows["data"].iloc[0])
    )
    text += missing_text(rows["loss"])
    draw = partial(compared_barriers, measured, "loss")
    return [Section("barriers", "Layer-wise barriers, minus the clients' mean loss", text, draw)]


def _run_sections(result: Result) -> list[Section]:
    measured, main = result.heterogeneity, label(result.main)
    sections = [
        Section(
            "curves",
            f"{label(result.main, capital=True)} and loss over the rounds",
            "Personalised: each client's own model right after it received the server's layers. Global: the server's "
            "model. Rounds in which a client's value is missing are gaps.",
            partial(figures.curves, result),
        ),
        Section(
            "clients",
            f"Personalised {main} per client",
            f"After round {result.evaluated}, on each client's own test data. Clients are sorted by {main}."
            + _without_values(result),
            partial(figures.clients, result),
        ),
        *evaluation_sections(result),
        *schedule_sections(result),
    ]
    sections += analysis_sections(result)
    text = (
        f"Training, validation and test examples of each client: {measured.sizes.min():,} to "
        f"{measured.sizes.max():,} examples, on average {measured.counts.effective_classes().mean():.1f} effective "
        f"classes of {len(measured.classes)}, mean total variation from the pooled labels "
        f"{measured.counts.total_variation().mean():.2f} (0: all alike, towards 1: no class in common), mean "
        f"Jensen-Shannon divergence {measured.counts.jensen_shannon().mean():.2f} nats (at most 0.69)."
    )
    return [*sections, Section("partition", "Partition", text, partial(partition, measured))]


def _without_values(result: Result) -> str:
    values = result.by_client("personalised")
    clients = sorted(map(int, values[values.isna()].index))
    return f" Missing: {name_clients(clients)}, without a finite loss or not evaluated." if clients else ""


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
    if config.stop.patience:
        metric = result.meant(config.stop.metric)
        means = validation_means(result.metrics.to_dict("records"), metric)
        reason = reason_to_stop(means, config.stop, metric) if result.evaluated < config.rounds else None
        parts += [f"stopped early: {reason}"] if reason else []
    return "; ".join(parts)


def _write(out: Path, content: Mapping[str, Any], sections: Sequence[Section], export: bool) -> Path:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedsim.results.report.pages", "."),
        autoescape=True,
        trim_blocks=True,
        finalize=lambda value: printable(value, lines=True) if isinstance(value, str) else value,
    )
    shown = [
        {
            "title": section.title,
            "text": section.text,
            "image": base64.b64encode(save(section.figure, "svg")).decode(),
        }
        for section in sections
    ]
    page = out / "report.html"
    write_whole(page, environment.get_template("page.html").render(**content, sections=shown))
    if export:
        for section in sections:
            name = re.sub(r"[^\w-]+", "-", section.name)  # which has what a table names, and must stay in the folder
            for kind in ("pdf", "png"):
                write_whole(out / f"{name}.{kind}", save(section.figure, kind))
    return page
