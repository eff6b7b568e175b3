"""How many runs of a sweep run in parallel, so that they fill the machine and no more."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.config import Config
from fedsim.config.choices import custom_names
from fedsim.config.sources import RUNNING
from fedsim.errors import ConfigError
from fedsim.federation.engines import room_on_cluster
from fedsim.federation.federation import choose_device
from fedsim.memory import free_bytes, peak_bytes
from fedsim.results.report.comparing.units import how_many

# Peak memory of a process that has completed a run over that of one that has imported torch and flwr and read the data:
# 1.3 for digits and Fashion-MNIST with an mlp, 1.5 with a cnn.
RUN_OVER_PREPARED = 1.5


@dataclass(frozen=True)
class Jobs:
    """How many runs at a time, and why.

    Parameters
    ----------
    workers
        Number of workers of each run's engine; 0 for one per processor.
    """

    runs: int
    count: int
    workers: int
    why: str

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.runs} runs, one after the other ({self.why})"
        return f"{self.runs} runs, {self.count} at a time with {how_many(self.workers, 'worker')} each ({self.why})"


def choose_jobs(
    configs: Sequence[Config],
    asked: int | None,
    processors: int,
    fitting: int | None = None,
    can_start: bool = True,
    only_here: str = "",
) -> Jobs:
    """Choose how many runs run in parallel.

    One run cannot fill many processors, as some of its parts have nothing to share out, so there are as many runs at a
    time as there are processors for their workers.

    Parameters
    ----------
    configs
        Configs of the runs, at least one; all have the same engine.
    asked
        What ``--jobs`` says, if it is given.
    fitting
        How many processes the free memory holds, if that is known.
    can_start
        Whether this process may start others: a worker of a `multiprocessing.Pool` may not.
    only_here
        Why the runs need this process, if they do.

    Raises
    ------
    ConfigError
        If more than one is asked for with a Ray that each run would start, where no process may be started or where the
        runs need this one, or a device is not on this machine.
    """
    runs, engine = len(configs), configs[0].engine
    if typed := _typed(configs):
        only_here = only_here or f"{typed!r} is in the script or notebook, which other processes lack"
        if engine.name == "ray":
            raise ConfigError(
                f"{typed!r} is in the script or notebook, which Ray's workers lack; move it into a module, or use "
                "engine.name = 'local'"
            )

    def one(why: str, refusal: str) -> Jobs:
        if asked and asked > 1:
            raise ConfigError(refusal)
        return Jobs(runs, 1, engine.workers, why)

    on_cluster = engine.name == "ray" and engine.address is not None
    if engine.name == "ray" and not on_cluster:
        return one(
            "each uses all of Ray",
            f"--jobs {asked} must be 1 with engine.name = 'ray', as all runs would share one Ray; leave it out, name a "
            "cluster as engine.address, or use --engine local",
        )
    if on_cluster and not (asked and asked > 1):
        return Jobs(runs, 1, engine.workers, "each uses all of the cluster; --jobs changes it")
    if not can_start:
        return one(
            "a worker of a multiprocessing pool starts no processes",
            f"--jobs {asked} must be 1 in a worker of a multiprocessing pool, which may start no processes; leave it "
            "out, or call fedsim from outside the pool",
        )
    if only_here:
        return one(only_here, f"jobs = {asked} must be 1: {only_here}; leave it out, or move the code into a module")
    if on_cluster and asked:
        count = min(asked, runs)
        return Jobs(runs, count, engine.workers or max(1, room_on_cluster(engine) // count), f"--jobs {asked}")
    if asked:
        count, why = min(asked, runs), f"--jobs {asked}"
    elif any(choose_device(config.device).type != "cpu" for config in configs):
        count, why = 1, "they would share one GPU; --jobs changes it"
    else:
        count = min(runs, max(1, processors // (engine.workers or 1)))
        why = how_many(processors, "processor")
        if fitting is not None and fitting < count:
            count = max(1, fitting)
            why += f", memory for {count}"
        why = f"{why}; --jobs changes it"
    workers = engine.workers or (max(1, processors // count) if count > 1 else 0)
    return Jobs(runs, count, workers, why)


def _typed(configs: Sequence[Config]) -> str | None:
    """Return a custom part that the running script or notebook defines."""
    names = (name for config in configs for name in custom_names(config).values())
    return next((name for name in names if name.startswith(f"{RUNNING}:")), None)


def processes_that_fit() -> int | None:
    """Return how many processes the free memory holds if each needs what this one did to check the runs, and trains.

    Returns
    -------
    count
        None where the system does not say: everywhere except on Linux.
    """
    free, peak = free_bytes(), peak_bytes()
    return None if free is None or peak is None else int(free / (peak * RUN_OVER_PREPARED))
