"""Which runs a comparison is about: finished ones, or all of them up to a round that they have in common."""

from collections.abc import Iterator, Sequence

from fedsim.errors import ConfigError
from fedsim.results.report.comparing.question import Question
from fedsim.results.result import Result
from fedsim.results.unfinished import common_round, is_finished, state_of, until
from fedsim.shortening import first_few

NAMED = 5  # runs


def comparable(results: Sequence[Result], question: Question) -> tuple[list[Result], list[Result]]:
    """Return the runs to compare and those that are left out, as they are not finished.

    A single run is compared with nothing, so that it may be unfinished.

    Raises
    ------
    ConfigError
        If no run is finished, or, with ``unfinished``, the runs have no evaluated round in common.
    """
    unfinished = [result for result in results if not is_finished(result)]
    if not unfinished or len(results) == 1:
        return list(results), []
    if not question.unfinished:
        if len(unfinished) == len(results):
            raise ConfigError(
                f"none of {len(results)} runs is finished: {name_unfinished(unfinished)}; resume them with 'fedsim "
                "run', or compare them at their common round with --unfinished"
            )
        return [result for result in results if is_finished(result)], unfinished
    server_round = common_round(results)
    if server_round is None:
        raise ConfigError(
            f"--unfinished: {name_unfinished(unfinished)} and the other runs have no evaluated round in common; resume "
            "them with 'fedsim run'"
        )
    return [until(result, server_round) for result in results], []


def name_unfinished(results: Sequence[Result]) -> str:
    """Return the names of runs with how far they came, the first ones if they are many."""
    return first_few(list(map(state_of, results)), NAMED)


def unfinished_texts(compared: Sequence[Result], left_out: Sequence[Result]) -> Iterator[str]:
    """Yield a line about the runs that are left out as they are not finished, and one about those that are compared."""
    if left_out:
        yield left_out_text(left_out)
    if unfinished := [result for result in compared if not is_finished(result)]:
        names = name_unfinished(unfinished)
        if len(compared) == 1:
            yield f"unfinished: {names}; resume it with 'fedsim run'"
        else:
            shown = max(result.evaluated for result in unfinished)
            yield f"compared at round {shown}, the last round of all runs; unfinished: {names}"


def left_out_text(unfinished: Sequence[Result]) -> str:
    """Return which runs are left out, and what to do about it."""
    runs = "1 unfinished run is" if len(unfinished) == 1 else f"{len(unfinished)} unfinished runs are"
    return (
        f"{runs} left out: {name_unfinished(unfinished)}; resume with 'fedsim run', or compare all at their common "
        "round with --unfinished"
    )
