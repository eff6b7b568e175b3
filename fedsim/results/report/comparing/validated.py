"""Whether runs have a metric on validation data, by which a round is chosen or a target is reached."""

from collections.abc import Sequence

from fedsim.errors import ConfigError
from fedsim.results.result import Result
from fedsim.shortening import first_few
from fedsim.training.metrics import unmeasured

NAMED = 3  # runs


def check_validated(results: Sequence[Result], metric: str, why: str, option: str, *, instead: str = "") -> None:
    """Check that the clients of runs have a metric on their validation data.

    Parameters
    ----------
    why
        What is done by its values, such as ``by which a target is reached``.
    option
        The option that asks for it, with which the message begins.
    instead
        Remedy other than another run, such as ``use --at last``.

    Raises
    ------
    ConfigError
        If some do not; the message names them.
    """
    lacking = [result for result in results if result.of("personalised", metric, "validation").empty]
    if not lacking:
        return
    measured = [_measured(result) for result in lacking]
    # What helps a run without validation data is not what helps one that measured another metric on them.
    alike = [result for result, each in zip(lacking, measured, strict=True) if bool(each) == bool(measured[0])]
    names = [str(result.folder.path) for result in alike]
    which = f"{first_few(names, NAMED)} {'has' if len(names) == 1 else 'have'} no"
    if measured[0]:
        meant = alike[0].meant(metric)
        remedy, between = unmeasured(meant, measured[0]), ", "
    else:
        meant = "values"
        remedy, between = f"run {'it' if len(names) == 1 else 'them'} with partition.validation greater than 0", ", or "
    first = f"{instead}{between}" if instead else ""
    raise ConfigError(f"{option}: {which} {meant} on validation data, {why}; {first}{remedy}")


def _measured(result: Result) -> set[str]:
    """Return the names of the metrics that a run has on validation data."""
    table = result.metrics
    return set(table.loc[table["split"] == "validation", "metric"].unique())
