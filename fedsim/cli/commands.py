"""The command line: ``fedsim run``, ``partition``, ``barriers``, ``compare``, ``report``, ``check`` and ``list``.

Results go to stdout, all else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or config.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from fedsim.analysis.mixing.names import KINDS
from fedsim.analysis.suite import BY_LAYER
from fedsim.cli.terminal import print_error, print_failures, print_table, say, write_text, write_to
from fedsim.config import Config, choices, naming, parse_assignment, read_toml, with_settings
from fedsim.config.catalogue import describe
from fedsim.config.choices import CATALOGUES, Kind
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.saved_models.comparison import compare_checkpoints, comparison_config, write_comparison
from fedsim.experiment.sweep import sweep
from fedsim.experiment.tuning import tune
from fedsim.experiment.tuning.grid import describe_tuning, tunings_of
from fedsim.federation.data import federated_data_of
from fedsim.federation.pfllib import write_pfllib
from fedsim.results import report
from fedsim.results.check.check import check
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.export import as_csv, as_latex, as_markdown
from fedsim.results.report.comparing.question import Question, read_budgets
from fedsim.results.report.comparing.tables import chosen_columns, comparison_table
from fedsim.results.report.drawing.checkpoints import barriers_table, features_table, matching_table
from fedsim.results.result import Result

app = typer.Typer(
    help="Federated learning with partial layer aggregation, and a look inside the averaging.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
ExperimentPath = Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment's settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; the value is TOML.")
]
RunPaths = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or an experiment's folder.")]


@app.command("run")
def run_command(
    path: ExperimentPath,
    settings: Settings = None,
    engine: Annotated[Literal["local", "ray"] | None, typer.Option(help="Where the clients run.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all experiments' runs.")] = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs at a time; as the machine allows if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Run an experiment, or go on where it was stopped; runs that are done are skipped."""
    config = _experiment(path, settings, {} if engine is None else {("engine", "name"): engine})
    tunings = tunings_of(config, str(path)) if config.tune.is_wanted else []
    if dry_run:
        for text in [describe_tuning(tunings)] if tunings else []:
            print(text)
        for each in _configs(config, path):
            print(describe_run(each))
        return
    tuned = tune.tune(tunings, out / path.stem, str(path), jobs) if tunings else tune.Tuned(_configs(config, path))
    for note in tuned.notes:
        say(note)
    runs = sweep.name_runs(tuned.configs, out / path.stem)
    tune.take_from_tuning(runs, out / path.stem)
    failures = dict(tuned.failures) | sweep.play_all(runs, jobs)
    if done := [run.folder for run in runs if run.folder.done.exists()]:
        print_table(comparison_table(compare(report.read_results(done))))
    say(f"runs: {out / path.stem}")
    if failures:
        print_failures(failures, len(runs) + len(tuned.failures))
        raise typer.Exit(2 if all(failure.wrong_config for failure in failures.values()) else 1)


@app.command("partition")
def partition_command(
    path: ExperimentPath,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder of all experiments; the figure goes below it.")] = Path("runs"),
    save: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Save the index sets, for [partition] scheme = 'saved'.")
    ] = None,
    pfllib: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each client's data as PFLlib reads them.")
    ] = None,
) -> None:
    """Print and draw which client holds what, without training; save it, also for other tools."""
    every = _configs(_experiment(path, settings), path)
    configs = {naming.partition_name(config): config for config in every}
    if len(configs) > 1 and (save or pfllib):
        raise ConfigError(f"{path} [sweep] has {len(configs)} partitions and a file holds one; choose with --set")
    if save and save.suffix != ".npz":
        raise ConfigError(f"--save {save}: the file's name must end in .npz")
    # Every mistake is found before the first figure is written.
    prepared = {name: federated_data_of(config) for name, config in configs.items()}
    for name, data in prepared.items():
        config, measured = data.config, data.heterogeneity()
        scheme = CATALOGUES["partitions"].label(config.partition)
        title = f"{config.data.name}, {scheme}, {config.clients} clients, seed {config.seed}"
        print(f"# {title}")
        print("\n".join([*measured.table(), "", *measured.summary(), ""]))
        folder = out / path.stem
        if save:
            write_to(save.parent, partial(data.save_split, save), "index sets", "--save")
        if pfllib:
            write_to(pfllib, partial(write_pfllib, data, pfllib), "PFLlib's data", "--pfllib")
        write_to(folder, partial(report.write_partition, measured, title, folder / name), "figure")


@app.command("barriers")
def barriers_command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="Files of torch.save or safetensors, two or more.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="The checkpoints' model; see 'fedsim list models'.")],
    data: Annotated[str, typer.Option(metavar="NAME", help="What it is measured on; see 'fedsim list data'.")],
    settings: Settings = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP", help=f"{', '.join(KINDS)}, or a layer expression; full and layers if not given."),
    ] = None,
    against: Annotated[
        Literal["average", "pairs"], typer.Option(help="Whose layers each checkpoint gets.")
    ] = "average",
    ts: Annotated[
        str | None, typer.Option(metavar="T,T,...", help="Where between its own layers (0) and the others' (1).")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="Of the checkpoints in the average; equal if not given.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(metavar="N", help="Examples, each class with its share; up to 1000 if not given.")
    ] = None,
    part: Annotated[Literal["test", "train"], typer.Option(help="Part of the data.")] = "test",
    normalisation: Annotated[
        Literal["interpolate", "base", "recompute"],
        typer.Option(help="What becomes of running statistics in a mixed layer."),
    ] = "interpolate",
    tolerance: Annotated[
        float | None, typer.Option(metavar="NATS", help="Use only as many examples as this half-width of 95 % needs.")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(click_type=click.Choice(BY_LAYER), help="Measure this of features or weights too; repeatable."),
    ] = None,
    matching: Annotated[
        Literal["none", "weights", "activations"],
        typer.Option(help="First put the units of all into the places that they have in the first checkpoint."),
    ] = "none",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sample and of random groups.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the tables and figures.")] = Path("barriers"),
) -> None:
    """Measure the layer-wise barriers between checkpoints from anywhere; no run is needed."""
    changes = {("seed",): seed} | dict(parse_assignment(text) for text in settings or [])
    compared = compare_checkpoints(
        paths,
        comparison_config(model, data, changes),
        groups=groups or ("full", "layers"),
        against=against,
        ts=_numbers(ts, "--ts"),
        weights=_numbers(weights, "--weights"),
        examples=examples,
        part=part,
        normalisation=normalisation,
        tolerance=tolerance,
        measures=measure or (),
        matching=matching,
    )
    print_table(barriers_table(compared.barriers, compared.names))
    if features := features_table(compared.others):
        print_table(features)
    if matching != "none":
        print_table(matching_table(compared.others["matching"]))
    write_to(out, partial(write_comparison, compared, out), "tables and figures")


@app.command("compare")
def compare_command(
    paths: RunPaths,
    metric: Annotated[Literal["accuracy", "loss"], typer.Option(help="What is compared.")] = "accuracy",
    by: Annotated[
        str | None, typer.Option(metavar="SETTING", help="Group by this setting, e.g. strategy.name.")
    ] = None,
    at: Annotated[
        Literal["last", "best"], typer.Option(help="Round: the last, or the best on the clients' validation data.")
    ] = "last",
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="STRATEGY|SETTING=VALUE", help="Gains over these runs, with the same partition and the same seed."
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="bytes[=50MB]|passes[=1M]", help="Accuracy at this cost; alone: the least that a run spends."
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(metavar="VALUE", help="Bytes and passes until the mean personalised value, e.g. 0.9."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="all|NAME,NAME,...", help="Columns of the table, by their names in the CSV.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the table with full precision.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as LaTeX (booktabs).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; the runs' common folder if not given.")] = None,
) -> None:
    """Print one table of several runs, seeds together, and write the page that compares them."""
    question = Question(metric, by, at, baseline, read_budgets(budget or []), target)
    results = report.read_results(report.find_runs(paths))
    comparison = compare(results, question)
    shown = chosen_columns(comparison, columns)
    table = comparison_table(comparison, shown)
    print_table(table)
    for option, path, text in (
        ("--csv", csv, as_csv(comparison, shown)),
        ("--markdown", markdown, as_markdown(table)),
        ("--latex", latex, as_latex(table)),
    ):
        if path is not None:
            write_to(path.parent, partial(write_text, path, text), "table", option)
    folder = out or _common_folder(results)
    write_to(folder, partial(report.write_comparison, results, folder, question))


@app.command("report")
def report_command(
    paths: RunPaths,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page and figures; the run's own if not given.")
    ] = None,
) -> None:
    """Write a page about a run, or about several, with every figure as PDF and PNG beside it."""
    results = report.read_results(report.find_runs(paths))
    if len(results) == 1:
        folder = out or results[0].folder.path
        write_to(folder, partial(report.write_run, results[0], folder, export=True))
    else:
        folder = out or _common_folder(results)
        write_to(folder, partial(report.write_comparison, results, folder, export=True))


@app.command("check")
def check_command(
    paths: RunPaths,
    expect: Annotated[
        Path | None,
        typer.Option(metavar="EXPERIMENT.toml", help="Take what is expected from this file; else as the runs had it."),
    ] = None,
) -> None:
    """Test whether runs show what their experiment expects; exit code 1 if they do not."""
    results = report.read_results(report.find_runs(paths))
    wanted = Config.parse(read_toml(expect), str(expect)).expect if expect else None
    checks = list(check(results, wanted))
    print("\n".join(map(str, checks)))
    if not all(each.passed for each in checks):
        raise typer.Exit(1)


@app.command("list")
def list_command(
    kind: Annotated[Kind, typer.Argument(metavar="strategies|partitions|features|models|data", help="What to list.")],
) -> None:
    """List what there is, with options and their defaults, and its source."""
    table = RichTable(box=box.SIMPLE)
    for heading in ("name", "what it does", "source"):
        table.add_column(heading, overflow="fold")
    for name, entry in CATALOGUES[kind].entries.items():
        text, source = describe(entry)
        options = CATALOGUES[kind].signature(name)
        table.add_row(name, f"{text}\n[dim]{escape('options: ' + options)}[/dim]" if options else text, source)
    Console().print(table)


def main() -> None:
    """Run the command line; a mistake of the user is one line and exit code 2."""
    # A strategy, partition, model or data set of one's own is found from the folder where the command is given.
    sys.path.append(str(Path.cwd()))
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    logging.basicConfig(format="fedsim: %(message)s", level=logging.WARNING)
    try:
        sys.exit(app(standalone_mode=False))
    except (ConfigError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        _fail(" ".join(message.split()), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped", 1)
    except (RunError, OSError) as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> None:
    print_error(message)
    sys.exit(code)


def _experiment(
    path: Path, settings: Sequence[str] | None, more: Mapping[tuple[str, ...], Any] | None = None
) -> Config:
    """Read an experiment's settings, changed as the command line says."""
    changes = dict(parse_assignment(text) for text in settings or []) | dict(more or {})
    experiment_settings = read_toml(path)
    for key in map(".".join, changes):  # the command line has the last word
        experiment_settings.get("sweep", {}).pop(key, None)
        tuned = experiment_settings.get("tune", {})
        if tuned.pop(key, None) is not None and not set(tuned) - {"rounds", "seed"}:
            del experiment_settings["tune"]
    return Config.parse(with_settings(experiment_settings, changes), str(path))


def _configs(config: Config, path: Path) -> list[Config]:
    """Resolve each combination of an experiment's sweep."""
    return [choices.resolve(each) for each in config.runs(str(path))]


def _numbers(text: str | None, option: str) -> list[float] | None:
    """Read numbers with commas between them."""
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be numbers with commas between them, such as 0,0.5,1") from None


def _common_folder(results: Sequence[Result]) -> Path:
    return Path(os.path.commonpath([result.folder.path.parent for result in results]))
