"""The command line: ``fedsim run``, ``partition``, ``barriers``, ``path``, those about finished runs, and ``list``.

Results go to stdout, all else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or config. This module reads the
arguments and settings; what a command does is imported once they are right, so that help and mistakes take no time.
"""

import gc
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import click
import typer

from fedsim import __version__
from fedsim.analysis.mixing.names import FACTORS, KINDS, Normalisation, PathName
from fedsim.analysis.suite import OF_CHECKPOINTS
from fedsim.cli import completion
from fedsim.cli.actions import action
from fedsim.cli.arguments import (
    DataName,
    Examples,
    ExperimentPath,
    ModelName,
    ModelSettings,
    Settings,
    changes_of,
    check_files,
    check_folder,
    check_here,
    experiment_of,
    numbers_of,
)
from fedsim.cli.finished import check_command, compare_command, export_command, report_command, verify_command
from fedsim.cli.paper import figure_command, table_command
from fedsim.cli.signals import INTERRUPTED
from fedsim.cli.streams import end_streams, prepare_streams
from fedsim.cli.terminal import OneLine, print_error, print_lines
from fedsim.cli.walking import path_command
from fedsim.cli.watching import status_command, watch_command
from fedsim.config.choices import CATALOGUES, Kind
from fedsim.config.expectation import MatchedBy
from fedsim.errors import (
    ConfigError,
    RunError,
    error_line,
    is_of_the_system,
    is_of_the_user,
    is_out_of_memory,
    message_of,
    system_line,
)
from fedsim.training.settings import Precision

app = typer.Typer(
    help="Simulate federated learning with partial layer aggregation, and measure what averaging does to each layer.",
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click does
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_lines(f"fedsim {__version__}")
        raise typer.Exit


@app.callback()
def fedsim(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Simulate federated learning with partial layer aggregation, and measure what averaging does to each layer."""


@app.command("run")
def run_command(
    path: ExperimentPath,
    settings: Settings = None,
    engine: Annotated[Literal["local", "ray"] | None, typer.Option(help="Where the clients run.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output directory; the runs go into a subdirectory.")] = Path(
        "runs"
    ),
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of runs in parallel (default: as many as the machine can handle)."
        ),
    ] = None,
    accept_versions: Annotated[
        bool,
        typer.Option(
            "--accept-versions",
            help="Resume runs even if the version of fedsim, Python or a package has changed since.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, without running it.")] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Show the log of every run; with --dry-run, every run in full."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only results, warnings and errors.")] = False,
) -> None:
    """Run an experiment. Resumes interrupted runs and skips finished ones."""
    if verbose and quiet:
        raise ConfigError("--verbose and --quiet exclude each other; give one of them")
    more = [] if engine is None else [f'engine.name="{engine}"']
    experiment = experiment_of(path, settings, more)
    if dry_run:
        action("dry run")(experiment, out, jobs, verbose=verbose, accept_versions=accept_versions)
    else:
        verbosity = "verbose" if verbose else "quiet" if quiet else "normal"
        raise typer.Exit(action("run")(experiment, out, jobs, accept_versions=accept_versions, verbosity=verbosity))


@app.command("partition")
def partition_command(
    path: ExperimentPath,
    settings: Settings = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Output directory; the figure goes into a subdirectory.")
    ] = Path("runs"),
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help='Save the index sets for reuse with [partition] scheme = "saved".'),
    ] = None,
    pfllib: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each client's data in PFLlib's format.")
    ] = None,
) -> None:
    """Show how the data are split across clients, without training. Can also export the split."""
    if save and save.suffix != ".npz":
        raise ConfigError(f"--save {save}: the file's name must end in .npz")
    check_files({"--save": save})
    check_folder(out, "--out")
    check_folder(pfllib, "--pfllib")
    action("partition")(experiment_of(path, settings), out, save, pfllib)


@app.command("barriers")
def barriers_command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT...", help="Two or more checkpoint files (torch.save or safetensors)."),
    ],
    model: ModelName,
    data: DataName,
    settings: ModelSettings = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP",
            help=f"Kind of layer groups ({', '.join(KINDS)}) or a layer expression (default: full and layers). "
            "Can be repeated.",
        ),
    ] = None,
    against: Annotated[
        Literal["average", "pairs"],
        typer.Option(
            help="Where replacement layers come from: the average of all checkpoints, with barriers above the mean of "
            "the models' losses, or each other checkpoint, with barriers above the line between the two losses."
        ),
    ] = "average",
    ts: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,...", help="Interpolation coefficients, from 0 (own layers) to 1 (the other model's)."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="Weights of the checkpoints in the average (default: equal)."),
    ] = None,
    examples: Examples = None,
    part: Annotated[Literal["test", "train"], typer.Option(help="Part of the data set to evaluate on.")] = "test",
    normalisation: Annotated[
        Normalisation,
        typer.Option(
            metavar="HOW",
            help="How to treat the running statistics of a mixed layer: interpolate, base (keep the model's own) or "
            "recompute.",
        ),
    ] = "interpolate",
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Evaluate mixed models on only as many examples as it takes to know their mean loss over all of them "
            "to within plus or minus NATS (95 % confidence).",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Precision of mixed models where there is a tolerance: bfloat16 is corrected by float32 on a few "
            "examples, and faster on processors with instructions for it."
        ),
    ] = "float32",
    measure: Annotated[
        list[str] | None,
        typer.Option(
            click_type=click.Choice(OF_CHECKPOINTS),
            metavar="MEASURE",
            help=f"Further measure of features, weights or models ({', '.join(OF_CHECKPOINTS)}). Can be repeated.",
        ),
    ] = None,
    matching: Annotated[
        MatchedBy,
        typer.Option(
            metavar="BY",
            help="Align the units of all checkpoints to the first one before measuring: by weights, by those of all at "
            "once (c2m3), by activations, by gradients of the loss halfway (sinkhorn), or by weights with rotations "
            "within the heads of transformers (head-rotations), of the residual stream too (rotations), or also with "
            "all invertible matrices within heads (invertible); or only experts, by gate, by gram matrices, or the "
            "units within each.",
        ),
    ] = "none",
    path: Annotated[
        PathName,
        typer.Option(
            help="Path between models with adapters of LoRA: factor by factor, by the products of their factors, or "
            "factor by factor after rotating them into a common frame."
        ),
    ] = FACTORS,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the sample and of random groups.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output directory of the page, tables and figures.")] = Path(
        "barriers"
    ),
) -> None:
    """Measure the layer-wise barriers between checkpoints from anywhere, without a federated run."""
    check_folder(out, "--out")
    changes = changes_of(model, data, seed, settings)
    numbers = {"ts": numbers_of(ts, "--ts"), "weights": numbers_of(weights, "--weights")}
    action("barriers")(
        paths,
        model,
        data,
        changes,
        out,
        **numbers,
        groups=groups or ("full", "layers"),
        against=against,
        examples=examples,
        part=part,
        normalisation=normalisation,
        tolerance=tolerance,
        precision=precision,
        measures=measure or (),
        matching=matching,
        path=path,
    )


app.command("path")(path_command)
app.command("compare")(compare_command)
app.command("report")(report_command)
app.command("check")(check_command)
app.command("verify")(verify_command)
app.command("export")(export_command)
app.command("table")(table_command)
app.command("figure")(figure_command)
app.command("status")(status_command)
app.command("watch")(watch_command)


@app.command("list")
def list_command(
    kind: Annotated[
        Literal[Kind, "settings"],
        typer.Argument(
            metavar="KIND",
            help="strategies, partitions, features, models, losses, optimizers, metrics, data or settings.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Show the options of this one; of settings, a table or a key.",
            autocompletion=completion.names_of_kind,
        ),
    ] = None,
) -> None:
    """List what is available, with references; with a name, its options and their defaults."""
    if kind == "settings":
        action("list settings")(name)
    elif name is None:
        action("list")(kind)
    else:
        CATALOGUES[kind].check_name(name)
        action("list one")(kind, name)


def main() -> None:
    """Run the command line; a mistake of the user is one line and exit code 2."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    prepare_streams()
    _prepare_log()
    try:
        if sys.flags.optimize > 1:
            raise ConfigError(
                "python -OO leaves out docstrings, which fedsim and Altair read; use python -O, or neither"
            )
        check_here()
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        end_streams()  # a full disk is noticed here
        sys.exit(code)
    except (ConfigError, click.ClickException) as error:
        _fail(error.format_message() if isinstance(error, click.ClickException) else str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped", 1)
    except RunError as error:
        _fail(str(error), 1)
    except OSError as error:
        if not is_of_the_system(error):
            raise
        _fail(system_line(error), 1)
    except Exception as error:
        # Whatever else is a mistake of fedsim's, whose traceback is wanted.
        if is_of_the_user(error):
            _fail(error_line(error), 1)
        if not is_out_of_memory(error):
            raise
        _fail(message_of(error), 1)
    finally:
        if "triton" in sys.modules:  # which reports at the end of Python what is still frozen
            gc.unfreeze()


def _prepare_log() -> None:
    """Let what is logged be lines of limited length."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("fedsim: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.raiseExceptions = False  # of a log that cannot be written: what cannot be written else ends the command


def _fail(message: str, code: int) -> None:
    print_error(message)
    sys.exit(code)
