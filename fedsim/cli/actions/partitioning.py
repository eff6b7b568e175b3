"""``fedsim partition``: which client holds what."""

from functools import partial
from pathlib import Path

from fedsim.cli.terminal import print_lines, write_to
from fedsim.config.choices import CATALOGUES
from fedsim.config.experiment_file import Experiment
from fedsim.errors import ConfigError
from fedsim.experiment import api
from fedsim.federation.data import federated_data_of
from fedsim.federation.pfllib import write_pfllib
from fedsim.results import report


def partition(experiment: Experiment, out: Path, save: Path | None, pfllib: Path | None) -> None:
    """Print and draw each partition of an experiment; export it where that is asked for."""
    configs = api.partitions_of(experiment)
    if len(configs) > 1 and (save or pfllib):
        raise ConfigError(
            f"{experiment.source} [sweep] has {len(configs)} partitions and a file holds one; choose with --set"
        )
    # Every mistake is found before the first figure is written.
    prepared = {name: federated_data_of(config) for name, config in configs.items()}
    for name, data in prepared.items():
        config, measured = data.config, data.heterogeneity()
        scheme = CATALOGUES["partitions"].label(config.partition)
        title = f"{config.data.name}, {scheme}, {config.clients} clients, seed {config.seed}"
        print_lines(f"# {title}", *measured.table(), "", *measured.summary(), "")
        folder = out / experiment.name
        if save:
            write_to(save.parent, partial(data.save_split, save), "index sets", "--save")
        if pfllib:
            write_to(pfllib, partial(write_pfllib, data, pfllib), "PFLlib's data", "--pfllib")
        write_to(folder, partial(report.write_partition, measured, title, folder / name), "figure")
