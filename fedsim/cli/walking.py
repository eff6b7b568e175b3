"""The command for walks between checkpoints: ``fedsim path``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.cli import completion
from fedsim.cli.actions import action
from fedsim.cli.arguments import Examples, ModelName, ModelSettings, changes_of, check_folder
from fedsim.errors import ConfigError


def path_command(
    start: Annotated[Path, typer.Argument(metavar="START", help="File with the checkpoint to walk from.")],
    end: Annotated[Path, typer.Argument(metavar="END", help="File with a checkpoint of the same model to walk to.")],
    model: ModelName,
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Data set to evaluate on, and to train on with its training part; see 'fedsim list data'.",
            autocompletion=completion.data,
        ),
    ],
    settings: ModelSettings = None,
    step: Annotated[float, typer.Option(help="Length of a layer step (L2 norm); inf moves each layer at once.")] = 0.1,
    share: Annotated[float, typer.Option(help="Minimum step as a share of the remaining distance.")] = 0.0,
    train_steps: Annotated[
        int, typer.Option(min=0, metavar="N", help="Steps of SGD after each layer step, 0 for none.")
    ] = 5,
    lr: Annotated[float, typer.Option(help="Learning rate of SGD.")] = 0.01,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Examples per step of SGD.")] = 64,
    keeps_variance: Annotated[
        bool,
        typer.Option(
            "--variance/--no-variance", help="Restore the variance of the weights of layers that have not arrived."
        ),
    ] = True,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="LAYER",
            help="Layer to move next; give each layer once (default: the model's order).",
        ),
    ] = None,
    max_steps: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of layer steps.")] = 30_000,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Layer steps from one evaluation to the next.")] = 20,
    examples: Examples = None,
    part: Annotated[
        Literal["test", "train"],
        typer.Option(help="Part of the data set to evaluate on; training always uses the training part."),
    ] = "test",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the sample and of the batches.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output directory of the page, figures and table.")] = Path(
        "path"
    ),
) -> None:
    """Walk from one checkpoint to another, layer by layer, with training on the way."""
    # Python's defaults, with the paper's step, take thousands of layer steps; these take some hundreds.
    check_folder(out, "--out")
    for option, value in {"--step": step, "--share": share, "--lr": lr}.items():
        if not value >= 0:
            raise ConfigError(f"{option} {value:g} must be at least 0")
    if not step and not share:
        raise ConfigError("--step 0 with --share 0 never moves; give one of them a positive number")
    changes = changes_of(model, data, seed, settings)
    action("path")(
        (start, end),
        model,
        data,
        changes,
        out,
        part=part,
        examples=examples,
        order=layers,
        step=step,
        share=share,
        train_steps=train_steps,
        lr=lr,
        batch_size=batch_size,
        keeps_variance=keeps_variance,
        max_ticks=max_steps,
        every=every,
    )
