"""Self-contained HTML pages: one per run, and one for a comparison. Their figures also as PDF and PNG."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from fedsim.heterogeneity import Heterogeneity
from fedsim.records import write_whole
from fedsim.report import figures
from fedsim.report.analysis import BARRIER_TEXT, analysis_sections, examples
from fedsim.report.barriers import compared_barriers
from fedsim.report.figures import format_bytes
from fedsim.report.partition import partition
from fedsim.report.results import Result, compare, distinguishing_settings, worst_mean
from fedsim.report.section import Section
from fedsim.report.style import save
from fedsim.report.tables import comparison_table

TABLE_NOTE = (
    "Accuracies in percent. Personalised: each client's own model on its own test data, mean ± standard deviation "
    "over the clients; worst 10 %: mean over the worst tenth of the clients, at least one; global: the server's "
    "model on the server's test data; traffic: bytes up and down over all rounds and clients; seconds: wall time "
    "of all rounds. With several seeds, each is the mean over the seeds."
)


def write_run(result: Result, out: Path, *, export: bool = False) -> Path:
    """Write the page about one run, and its figures too if ``export``, into the folder ``out``; return its path."""
    personalised = result.by_client("personalised")
    numbers = [
        (
            "personalised accuracy, mean ± std over clients",
            f"{personalised.mean():.1%} ± {personalised.std(ddof=0):.1%}",
        ),
        ("personalised accuracy, worst 10 % of clients", f"{worst_mean(personalised.to_numpy()):.1%}"),
        ("global accuracy, server's test data", f"{result.on_server('global').loc[result.evaluated]:.1%}"),
        ("traffic, up and down", format_bytes(result.bytes_total)),
        ("wall time of the rounds", f"{result.seconds_total:.0f} s"),
    ]
    if analysis := result.seconds_of("barriers"):
        share = analysis / result.seconds_total
        numbers.append(("wall time of the analysis, share of the rounds'", f"{analysis:.3g} s, {share:.0%}"))
    faults = {"updates left out of an average": "left_out", "clients set back to a checkpoint": "restored_from"}
    numbers += [(text, f"{count}") for text, metric in faults.items() if (count := result.count(metric))]
    details = [
        ("Configuration", result.folder.config.read_text()),
        ("Environment", json.dumps(result.folder.read_env(), indent=1)),
    ]
    content = {
        "title": f"{result.strategy} on {result.data}",
        "subtitle": _subtitle(result),
        "numbers": numbers,
        "details": details,
    }
    return _write(out, content, _run_sections(result), export)


def write_partition(measured: Heterogeneity, title: str, path: Path) -> Path:
    """Write the figure of a partition as PDF and as PNG beside each other; return the latter's path."""
    figure = partition(measured, title)
    for kind in ("pdf", "png"):
        write_whole(path.with_name(f"{path.name}.{kind}"), save(figure, kind))
    return path.with_name(f"{path.name}.png")


def write_comparison(results: Sequence[Result], out: Path, *, export: bool = False) -> Path:
    """Write the page that compares several runs into the folder ``out``; return its path."""
    labelled = _labels(results)
    sections = [
        Section(
            "accuracy",
            "Accuracy over the rounds",
            "Left: what each client gets out of it. Right: what the server's own model can do.",
            figures.compared_curves(labelled),
        ),
        Section(
            "clients",
            "Personalised accuracy of each client",
            "Each point is a client after the last round; the box spans the quartiles, its line is the median.",
            figures.compared_clients(labelled),
        ),
        Section(
            "traffic",
            "Accuracy for the bytes it costs",
            "Only layers that a strategy shares travel, and only they count.",
            figures.compared_traffic(labelled),
        ),
    ]
    if with_barriers := {name: result for name, result in labelled.items() if len(result.barriers)}:
        rows = pd.concat([result.barriers for result in with_barriers.values()])
        measured_on = examples(rows, rows["data"].iloc[0])
        text = BARRIER_TEXT.format(metric="loss", mean="mean over the clients", data=measured_on)
        figure = compared_barriers(with_barriers, "loss")
        sections.append(Section("barriers", "Layer-wise barriers, minus the clients' mean loss", text, figure))
    content = {
        "title": f"{len(results)} runs on {', '.join(sorted({result.data for result in results}))}",
        "subtitle": ", ".join(str(result.folder.path) for result in results),
        "table": comparison_table(compare(results)),
        "table_note": TABLE_NOTE,
        "details": [
            (f"Configuration of {name}", result.folder.config.read_text()) for name, result in labelled.items()
        ],
    }
    return _write(out, content, sections, export)


def _run_sections(result: Result) -> list[Section]:
    measured = result.heterogeneity
    sections = [
        Section(
            "curves",
            "Accuracy and loss over the rounds",
            "Personalised: each client's own model right after the server's layers reached it. Global: the server's.",
            figures.curves(result),
        ),
        Section(
            "clients",
            "Personalised accuracy per client",
            f"After round {result.evaluated}, on each client's own test data; clients sorted.",
            figures.clients(result),
        ),
    ]
    sections += analysis_sections(result)
    text = (
        f"What each client holds, train, validation and test together: {measured.sizes.min():,} to "
        f"{measured.sizes.max():,} examples, on average {measured.counts.effective_classes().mean():.1f} effective "
        f"classes of {len(measured.classes)}, mean total variation from the pooled labels "
        f"{measured.counts.total_variation().mean():.2f} (0: all alike, towards 1: no class in common), mean "
        f"Jensen-Shannon divergence {measured.counts.jensen_shannon().mean():.2f} nats (at most 0.69)."
    )
    return [*sections, Section("partition", "Partition", text, partition(measured))]


def _subtitle(result: Result) -> str:
    config = result.config
    options = ", ".join(f"{key} = {value}" for key, value in config.partition.options.items())
    scheme = config.partition.scheme + (f" ({options})" if options else "")
    parts = [
        f"{config.clients} clients, {scheme}",
        f"model {config.model.name}",
        f"{result.evaluated} of {config.rounds} rounds",
        f"participation {config.participation:g}",
        f"local training: epochs {config.local.epochs}, batches of {config.local.batch_size}, lr {config.local.lr:g}",
        f"seed {config.seed}",
    ]
    return "; ".join(parts)


def _labels(results: Sequence[Result]) -> dict[str, Result]:
    """Name each run by its strategy and the settings that differ, and by its folder where that is not enough."""
    settings = distinguishing_settings(results)
    names = [
        ", ".join([result.strategy, *(f"{key}={value}" for key, value in each.items())])
        for result, each in zip(results, settings, strict=True)
    ]
    several_seeds = len({result.config.seed for result in results}) > 1
    names = [f"{name}, seed {r.config.seed}" if several_seeds else name for name, r in zip(names, results, strict=True)]
    return {
        name if names.count(name) == 1 else f"{name} {result.folder.path.name}": result
        for name, result in zip(names, results, strict=True)
    }


def _write(out: Path, content: Mapping[str, Any], sections: Sequence[Section], export: bool) -> Path:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedsim.report", "."), autoescape=True, trim_blocks=True
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
            for kind in ("pdf", "png"):
                write_whole(out / f"{section.name}.{kind}", save(section.figure, kind))
    return page
