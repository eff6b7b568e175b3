"""Blocks of made-up inputs of one kind, each in a process of its own, so that none can disturb the others."""

import functools
import json
import os
import resource
import signal
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hypothesis
import typer.main
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

from benchmarks.soak.cases import Tried
from benchmarks.soak.fuzz.arguments import arguments
from benchmarks.soak.fuzz.checkpoints import checkpoints
from benchmarks.soak.fuzz.data_files import data_files
from benchmarks.soak.fuzz.experiments import assignments, configs, custom_names, layer_expressions
from benchmarks.soak.fuzz.inputs import Input, problem_of

MEMORY = 3 * 2**30  # bytes of more addresses that a process may have, so that a size beyond any memory harms no one
KINDS: dict[str, Callable[[], SearchStrategy[Input]]] = {
    "configs": configs,
    "settings": assignments,
    "arguments": arguments,
    "names": custom_names,
    "expressions": layer_expressions,
    "checkpoints": checkpoints,
    "data files": data_files,
}
QUIET = settings(
    deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=False
)


def case(number: int, scratch: Path, inputs: int = 500) -> Tried:
    """Give a block of inputs of one kind to the command line."""
    kind = list(KINDS)[number % len(KINDS)]
    scratch.joinpath("case").mkdir()
    told = scratch / "case" / "told.json"
    KINDS[kind]()  # which keeps what it looks up, here for all blocks
    pid = os.fork()
    if not pid:
        os._exit(_block(kind, number, inputs, told))
    _, status = os.waitpid(pid, 0)
    content = json.loads(told.read_text()) if told.exists() else {"inputs": 0, "problems": {}}
    tried = Tried()
    tried.counts["inputs"] += content["inputs"]
    tried.counts[kind] += content["inputs"]
    for problem, given in content["problems"].items():
        tried.check(f"{problem}\n    {given}", kind)
    if status:
        now = (told.parent / "now").read_text() if (told.parent / "now").exists() else ""
        tried.check(f"the process ended with {os.waitstatus_to_exitcode(status)} at\n    {now}", kind)
    return tried


def problems(kind: str, inputs: int, folder: Path, seed: int) -> tuple[int, dict[str, Input]]:
    """Return how many inputs were given, and by what was wrong the smallest that showed it.

    Parameters
    ----------
    folder
        Working folder of the commands; what is in it is removed.
    seed
        Seed of the inputs.
    """
    count, found = 0, dict[str, Input]()

    def check(given: Input) -> None:
        nonlocal count
        count += 1
        (folder.parent / "now").write_text(str(given))
        problem = problem_of(given, folder)
        if problem and (problem not in found or given.size < found[problem].size):
            found[problem] = given

    test = hypothesis.seed(seed)(hypothesis.given(KINDS[kind]())(check))
    settings(QUIET, max_examples=inputs)(test)()
    return count, found


def _block(kind: str, number: int, inputs: int, told: Path) -> int:
    """Give a block of inputs in this process, which is a forked one; return its exit code."""
    try:
        folder = told.parent / "work"
        alone(folder)
        count, found = problems(kind, inputs, folder, number)
        texts = {problem: str(given) for problem, given in found.items()}
        told.write_text(json.dumps({"inputs": count, "problems": texts}))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def alone(folder: Path) -> None:
    """Cut this process off: no network, no more memory than one command should need, and its own temporary files."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    os.environ.update(TMPDIR=str(temporary), XDG_CACHE_HOME=str(temporary), HOME=str(temporary))
    tempfile.tempdir = str(temporary)
    socket.socket.connect = _no_network  # type: ignore[method-assign]
    typer.main.get_command = functools.cache(typer.main.get_command)  # half of the time of a rejected command
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _no_network(*arguments: object) -> NoReturn:
    raise ConnectionRefusedError(111, "there is no network in the soak")
