"""``fedsim export``: a model of a run as a file."""

from pathlib import Path

from fedsim.cli.terminal import print_lines, say
from fedsim.errors import ConfigError
from fedsim.experiment.export import describe, export_model
from fedsim.experiment.kept_round import Metric, WantedRound, kept_round
from fedsim.results.reading import find_runs


def export(path: Path, client: int | None, wanted: WantedRound, metric: Metric, to: Path) -> None:
    """Write a model of one run, and print what it is."""
    runs = find_runs([path])
    if len(runs) > 1:
        raise ConfigError(f"{path} holds {len(runs)} runs; give one of them, such as {runs[0].path}")
    kept = kept_round(runs[0], client, wanted, metric)
    export_model(kept, to)
    print_lines(describe(kept))
    say(f"model: {to}")
