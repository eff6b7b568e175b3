"""The command line: ``fedsim run``, ``partition``, ``barriers``, ``compare``, ``report``, ``check`` and ``list``.

Results go to stdout, all else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or config.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from fedsim import catalog, naming, report, sweep
from fedsim.analysis.groups import KINDS
from fedsim.catalog import CATALOGUES, Kind
from fedsim.check import check
from fedsim.checkpoint_barriers import compare_checkpoints, comparison_config, write_comparison
from fedsim.config import Config, parse_assignment, read_toml, with_settings
from fedsim.dry_run import describe_run
from fedsim.errors import ConfigError, RunError
from fedsim.federated_data import federated_data_of
from fedsim.pfllib import write_pfllib
from fedsim.report.checkpoints import barriers_table
from fedsim.report.results import Result, compare
from fedsim.report.tables import Table, comparison_table

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
    configs = _configs(path, settings, {} if engine is None else {("engine", "name"): engine})
    if dry_run:
        for each in configs:
            print(describe_run(each))
        return
    runs = sweep.name_runs(configs, out / path.stem)
    failures = sweep.play_all(runs, jobs)
    if done := [run.folder for run in runs if run.folder.done.exists()]:
        _print_comparison(report.read_results(done), "accuracy", None)
    print(f"runs: {out / path.stem}", file=sys.stderr)
    if failures:
        _print_failures(failures, len(runs))
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
    configs = {naming.partition_name(config): config for config in _configs(path, settings)}
    if len(configs) > 1 and (save or pfllib):
        raise ConfigError(f"{path} [sweep] has {len(configs)} partitions and a file holds one; choose with --set")
    if save and save.suffix != ".npz":
        raise ConfigError(f"--save {save}: the file's name must end in .npz")
    # Every mistake is found before the first figure is written.
    every = {name: federated_data_of(config) for name, config in configs.items()}
    for name, data in every.items():
        config, measured = data.config, data.heterogeneity()
        scheme = CATALOGUES["partitions"].label(config.partition)
        title = f"{config.data.name}, {scheme}, {config.clients} clients, seed {config.seed}"
        print(f"# {title}")
        print("\n".join([*measured.table(), "", *measured.summary(), ""]))
        folder = out / path.stem
        if save:
            _write(partial(data.save_split, save), save.parent, "index sets", "--save")
        if pfllib:
            _write(partial(write_pfllib, data, pfllib), pfllib, "PFLlib's data", "--pfllib")
        _write(partial(report.write_partition, measured, title, folder / name), folder, "figure")


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
    )
    _print_table(barriers_table(compared.barriers, compared.names))
    _write(partial(write_comparison, compared, out), out, "tables and figures")


@app.command("compare")
def compare_command(
    paths: RunPaths,
    metric: Annotated[Literal["accuracy", "loss"], typer.Option(help="What is compared.")] = "accuracy",
    by: Annotated[
        str | None, typer.Option(metavar="SETTING", help="Group by this setting, e.g. strategy.name.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; the runs' common folder if not given.")] = None,
) -> None:
    """Print one table of several runs and write the page that compares them."""
    results = report.read_results(report.find_runs(paths))
    _print_comparison(results, metric, by)
    folder = out or _common_folder(results)
    _write(partial(report.write_comparison, results, folder), folder)


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
        _write(partial(report.write_run, results[0], folder, export=True), folder)
    else:
        folder = out or _common_folder(results)
        _write(partial(report.write_comparison, results, folder, export=True), folder)


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
        text, source = catalog.describe(entry)
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
    _print_error(message)
    sys.exit(code)


def _print_error(message: str) -> None:
    print(f"fedsim: error: {message}", file=sys.stderr)


def _print_failures(failures: Mapping[str, sweep.Failure], runs: int) -> None:
    if runs > 1:
        _print_error(f"{len(failures)} of {runs} runs failed; the same command plays them again")
    for name, failure in failures.items():
        _print_error(f"{name}: {failure.message}" if runs > 1 else failure.message)


def _configs(
    path: Path, settings: Sequence[str] | None, more: Mapping[tuple[str, ...], Any] | None = None
) -> list[Config]:
    """Read an experiment's settings, changed as the command line says, and resolve each combination of its sweep."""
    changes = dict(parse_assignment(text) for text in settings or []) | dict(more or {})
    experiment_settings = read_toml(path)
    for key in map(".".join, changes):
        experiment_settings.get("sweep", {}).pop(key, None)  # the command line has the last word
    config = Config.parse(with_settings(experiment_settings, changes), str(path))
    return [catalog.resolve(each) for each in config.runs(str(path))]


def _print_comparison(results: Sequence[Result], metric: str, by: str | None) -> None:
    _print_table(comparison_table(compare(results, metric, by), metric))


def _print_table(text: Table) -> None:
    table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, numeric in zip(text.headings, text.numeric, strict=True):
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=not numeric)
    for row in text.rows:
        table.add_row(*row)
    # Piped into a file, a table keeps its columns whatever the width of a terminal would be.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _numbers(text: str | None, option: str) -> list[float] | None:
    """Read numbers with commas between them."""
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be numbers with commas between them, such as 0,0.5,1") from None


def _common_folder(results: Sequence[Result]) -> Path:
    return Path(os.path.commonpath([result.folder.path.parent for result in results]))


def _write(write: Callable[[], Path], folder: Path, what: str = "report", option: str = "--out") -> None:
    try:
        written = write()
    except OSError as error:
        raise ConfigError(f"folder {folder} cannot be written ({error}); give another with {option}") from error
    print(f"{what}: {written}", file=sys.stderr)
